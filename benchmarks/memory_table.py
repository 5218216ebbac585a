"""Table of the peak memory of the train step, compiled for a card without having it.

    JAX_PLATFORMS=cpu python -m benchmarks.memory_table        # needs the extra `target`; minutes

Model of configs/rtx4070_110m.py (12 x 768, 1,024 tokens, 32,768 pieces), one micro-step per step:
so there are no accumulated gradients, 0.41 GiB with this model. In brackets independent
measurements with another implementation. A star: XLA was short of memory and rematerialized.
"""

import json

import jax
from absl import app, flags

from configs import rtx4070_110m
from gptjax.model import GPTConfig
from gptjax.plan import compile_step, devices

_GIB = 2**30
_CHUNK = 2048

# attention, remat, loss_chunk: batch size -> GiB of the independent measurement
CASES = {
    ("xla", "none", 0): {12: 23.6},
    ("cudnn", "none", 0): {8: 9.5, 12: 13.6},
    ("cudnn", "none", _CHUNK): {8: 8.1, 12: 11.2},
    ("cudnn", "dots", _CHUNK): {8: 3.2, 12: 4.0, 24: 6.3},
    ("cudnn", "full", _CHUNK): {12: 2.3, 24: 3.0},
    ("chunked", "dots", _CHUNK): {12: 4.1},
}


def compile_case(
    device: devices.Device, *, attention: str, remat: str, loss_chunk: int, batch_size: int
) -> compile_step.CompiledStep:
    """Compiles one cell of the table."""
    config = rtx4070_110m.get_config()
    config.model.attention, config.model.remat = attention, remat
    config.model.loss_chunk = loss_chunk
    config.train.batch_size, config.train.gradient_accumulation_steps = batch_size, 1
    jax.clear_caches()  # or the programs of all cells stay in memory
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    return compile_step.compile_step(config, model_config, device)


def main(_: list[str]) -> None:
    device = devices.find(flags.FLAGS.target)
    batch_sizes = sorted({b for cells in CASES.values() for b in cells})
    rows = []
    for (attention, remat, loss_chunk), independent in CASES.items():
        row = [f"{attention}, remat {remat}, loss_chunk {loss_chunk:,}"]
        for batch_size in batch_sizes:
            if batch_size not in independent:
                row.append("")
                continue
            step = compile_case(
                device,
                attention=attention,
                remat=remat,
                loss_chunk=loss_chunk,
                batch_size=batch_size,
            )
            result = {"attention": attention, "remat": remat, "loss_chunk": loss_chunk}
            result |= {"batch_size": batch_size, "gib": round(step.total / _GIB, 3)}
            result |= {
                "independent": independent[batch_size],
                "rematerialized": step.n_rematerialized,
            }
            print(json.dumps({"benchmark": "memory_table", "target": device.name, **result}))
            star = "*" if step.n_rematerialized else ""
            row.append(f"{step.total / _GIB:.1f}{star} ({independent[batch_size]})")
        rows.append(row)
    print(f"\n| {device.kind}, GiB | " + " | ".join(f"B={b}" for b in batch_sizes) + " |")
    print("| --- |" + " --- |" * len(batch_sizes))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    flags.DEFINE_string("target", "rtx4070", "Card to compile for.")
    app.run(main)
