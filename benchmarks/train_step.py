"""Tokens per second, MFU, memory and time of the training step on the local device.

    python -m benchmarks.train_step --config=configs/rtx4070.py

Batches of random tokens are made beforehand. Prints one line of JSON; `dispatch_ms` is the time
that the host needs to start a step, and null stands for a figure that the device does not report.
"""

import json
import statistics
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import cli
from configs.validate import validate
from gptjax.model import GPTConfig, count_params, flops_per_token
from gptjax.plan.devices import peak_flops
from gptjax.step import StepFunctions, make_mesh, place_batch
from gptjax.step.compilation_cache import keep_compiled

_STEPS = flags.DEFINE_integer("steps", 20, "Steps that are timed.", lower_bound=3)


def synthetic_batch(config: ConfigDict, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Returns a batch [A, B, T] of random tokens; with a document mask, two documents a row."""
    train, length = config.train, config.model.block_size
    shape = (train.gradient_accumulation_steps, train.batch_size, length)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (*shape[:2], length + 1), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    batch["loss_mask"] = np.ones(shape, bool)
    if config.data.document_mask:
        index = np.arange(length, dtype=np.int32)
        half = index >= length // 2
        batch["segment_ids"] = np.broadcast_to(np.where(half, 2, 1).astype(np.int32), shape)
        batch["positions"] = np.broadcast_to(index - half * np.int32(length // 2), shape)
    return batch


def measure(config: ConfigDict, steps: int) -> dict[str, object]:
    """Times `steps` steps after two warm-up steps, of which the first compiles."""
    vocab_size = config.tokenizer.vocab_size
    model_config = GPTConfig.from_config(config, vocab_size)
    functions = StepFunctions(
        config, model_config, np.ones(vocab_size, np.int32), make_mesh(config.mesh.fsdp)
    )
    batches = [
        place_batch(functions.batch_sharding, synthetic_batch(config, vocab_size, seed))
        for seed in range(4)
    ]
    start = time.perf_counter()
    state, metrics = functions.train_step(functions.init_state(), batches[0])
    jax.block_until_ready(metrics)
    first_step = time.perf_counter() - start
    state, metrics = functions.train_step(state, batches[1])
    jax.block_until_ready(metrics)
    times, dispatches = [], []
    for i in range(steps):
        start = time.perf_counter()
        state, metrics = functions.train_step(state, batches[i % len(batches)])
        dispatches.append(time.perf_counter() - start)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    n_programs = functions.train_step._cache_size()  # type: ignore[attr-defined]  # not public
    assert n_programs == 1, "the step was compiled more than once"
    seconds = statistics.median(times)
    tokens = batches[0]["inputs"].size
    device, n_devices = jax.devices()[0], jax.device_count()
    peak = peak_flops(device)
    mfu = None
    if peak is not None:
        mfu = tokens / seconds * flops_per_token(model_config) / (peak * n_devices)
    memory = device.memory_stats() or {}  # a CPU has none
    return {
        "benchmark": "train_step",
        "device": f"{n_devices} x {device.device_kind}",
        "jax": jax.__version__,
        "n_params": count_params(model_config)[0],
        "tokens_per_step": tokens,
        "compute_dtype": model_config.compute_dtype,
        "step_seconds": round(seconds, 6),
        "fastest_step_seconds": round(min(times), 6),
        "tokens_per_sec": round(tokens / seconds, 1),
        "mfu": mfu,
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
        "dispatch_ms": round(1e3 * statistics.median(dispatches), 3),
        "first_step_seconds": round(first_step, 2),
    }


def main(config: ConfigDict) -> None:
    """Prints the line."""
    validate(config, jax.device_count())
    keep_compiled(config.compilation_cache_dir)
    print(json.dumps(measure(config, _STEPS.value)))


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
