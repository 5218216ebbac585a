"""Seconds of a training step on a CPU against nanoGPT's, in float32, alternately.

    git clone https://github.com/karpathy/nanoGPT
    python -m benchmarks.nanogpt --nanogpt=nanoGPT

Both make one optimizer update from one batch: forward, backward, clipping, AdamW. nanoGPT runs as
its train.py does on a CPU without torch.compile. A ratio above 1 means that gptjax is faster. Needs
torch; torch and XLA use all cores this process may use (`taskset` sets them).

On a CPU that is not Intel's, torch's MKL takes slower paths than the same CPU could run, about half
as fast on AMD's with AVX-512. Mention it when you quote a ratio from such a CPU.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from configs import base
from gptjax.model import GPTConfig
from gptjax.step import StepFunctions, make_mesh

SIZES = {  # B, T, L, D, V; heads are 64 wide
    "small": (8, 256, 6, 256, 4096),
    "large": (1, 1024, 12, 512, 32_768),
}


def configuration(size: str, loss_chunk: int, scan_unroll: int) -> ConfigDict:
    config = base.get_config()
    batch_size, block_size, n_layer, n_embd, vocab_size = SIZES[size]
    config.train.batch_size = batch_size
    config.train.gradient_accumulation_steps = 1
    config.tokenizer.vocab_size = vocab_size
    config.model.update(
        block_size=block_size,
        n_layer=n_layer,
        n_head=n_embd // 64,
        n_embd=n_embd,
        compute_dtype="float32",
        loss_chunk=loss_chunk,
        scan_unroll=scan_unroll or n_layer,
    )
    return config


def random_tokens(config: ConfigDict) -> np.ndarray:
    """[B, T + 1]; the time does not depend on the tokens."""
    shape = (config.train.batch_size, config.model.block_size + 1)
    return np.random.default_rng(0).integers(0, config.tokenizer.vocab_size, shape, dtype=np.int32)


def ours(config: ConfigDict) -> Callable[[], float]:
    vocab_size = config.tokenizer.vocab_size
    model_config = GPTConfig.from_config(config, vocab_size)
    steps = StepFunctions(config, model_config, np.ones(vocab_size, np.int32), make_mesh(1))
    tokens = random_tokens(config)[None]
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    batch["loss_mask"] = np.ones(batch["targets"].shape, bool)
    placed = jax.device_put(batch, steps.batch_sharding)
    state = steps.init_state()

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(steps.train_step(state, placed))
        return float(metrics["nats"]) / tokens[..., 1:].size

    return step


def theirs(config: ConfigDict, folder: Path) -> Callable[[], float]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        sys.exit(f"error: {folder} has no model.py: give a clone of nanoGPT")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    shape = {name: config.model[name] for name in ("block_size", "n_layer", "n_head", "n_embd")}
    optim = config.optim
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        model = module.GPT(
            module.GPTConfig(
                **shape,
                vocab_size=config.tokenizer.vocab_size,
                dropout=config.model.dropout,
                bias=config.model.bias,
            )
        )
        optimizer = model.configure_optimizers(
            optim.weight_decay, optim.learning_rate, (optim.beta1, optim.beta2), "cpu"
        )
    tokens = torch.from_numpy(random_tokens(config)).long()
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--loss-chunk", type=int, default=0, help="model.loss_chunk")
    parser.add_argument("--scan-unroll", type=int, default=0, help="0: all layers")
    arguments = parser.parse_args()
    for size in arguments.size:
        config = configuration(size, arguments.loss_chunk, arguments.scan_unroll)
        contenders = {"gptjax": ours(config), "nanogpt": theirs(config, arguments.nanogpt)}
        first = {name: step() for name, step in contenders.items()}
        expected = np.log(config.tokenizer.vocab_size)  # of an untrained model
        assert all(abs(loss - expected) < 0.5 for loss in first.values()), first
        wall: dict[str, list[float]] = {name: [] for name in contenders}
        cpu: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, step in contenders.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                step()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
        result: dict[str, Any] = {
            "benchmark": "train step beside nanoGPT",
            "size": dict(zip(("B", "T", "L", "D", "V"), SIZES[size], strict=True)),
            "cores": len(os.sched_getaffinity(0)),
            "rounds": arguments.rounds,
        }
        for name in contenders:
            result[f"{name}_median_ms"] = round(1e3 * statistics.median(wall[name]), 1)
            result[f"{name}_lowest_ms"] = round(1e3 * min(wall[name]), 1)
            result[f"{name}_lowest_cpu_ms"] = round(1e3 * min(cpu[name]), 1)
        for what in ("median_ms", "lowest_ms", "lowest_cpu_ms"):
            ratio = result[f"nanogpt_{what}"] / result[f"gptjax_{what}"]
            result[f"ratio_of_{what.removesuffix('_ms')}"] = round(ratio, 2)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
