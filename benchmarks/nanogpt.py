"""A training step on a CPU beside nanoGPT's and the machine's own matmuls, in float32, in turns.

    git clone https://github.com/karpathy/nanoGPT
    python -m benchmarks.nanogpt --nanogpt=nanoGPT

Both make one optimizer update from one batch: forward, backward, clipping, AdamW. Each program is
a process of its own, so that it has its own memory allocator and threads, and works while the
others wait:

    gptjax               as `python -m gptjax.main` runs it
    gptjax-huge-pages    the same, with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, so that memory which
                         is allocated at each step takes fewer page faults
    nanogpt              as its train.py runs without torch.compile
    nanogpt-huge-pages   the same, with huge pages
    nanogpt-mkl          the same, with MKL at its full speed; only where the CPU is not Intel's: on
                         others MKL takes slower paths, unless it takes them for Intel's. Needs a C
                         compiler
    nanogpt-compile      with torch.compile; needs a C++ compiler
    matmuls              the matmuls of a step with weights, each a plain dot of XLA

A `ratio` above 1 means that gptjax is faster. `share` is the model FLOPs of a step by its time, as
a share of the rate of `matmuls`; the masked half of attention counts as work. Needs torch for
nanoGPT; all use the cores this process may use (`taskset` sets them).
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measure import alternate, show
from configs import base
from gptjax.model import GPTConfig, flops_per_token
from gptjax.step import StepFunctions, make_mesh

SIZES = {  # B, T, L, D, V; heads are 64 wide
    "small": (8, 256, 6, 256, 4096),
    "large": (1, 1024, 12, 512, 32_768),
}
PROGRAMS = (
    *("gptjax", "gptjax-huge-pages"),
    *("nanogpt", "nanogpt-huge-pages", "nanogpt-mkl", "nanogpt-compile"),
    "matmuls",
)
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a program starts
_PAUSE = 0.3  # seconds after a step in which threads of its process may still spin


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


def theirs(config: ConfigDict, folder: Path, *, compiled: bool) -> Callable[[], float]:
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
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
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        _, loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def matmuls(config: ConfigDict) -> Callable[[], float]:
    """The products of activations and weights in a step: y = x W, dx = dy W^T, dW = x^T dy."""
    model, rng = config.model, np.random.default_rng(0)
    tokens, width, n_layer = random_tokens(config)[:, 1:].size, model.n_embd, model.n_layer
    counts = {
        (width, width): 4 * n_layer,
        (width, 4 * width): n_layer,
        (4 * width, width): n_layer,
        (width, config.tokenizer.vocab_size): 1,
    }
    forms = [
        jax.jit(lambda x_MD, w_DF, dy_MF: x_MD @ w_DF),
        jax.jit(lambda x_MD, w_DF, dy_MF: dy_MF @ w_DF.T),
        jax.jit(lambda x_MD, w_DF, dy_MF: (dy_MF.T @ x_MD).T),  # faster than x^T dy
    ]
    operands = {}
    for d_in, d_out in counts:
        shapes = (tokens, d_in), (d_in, d_out), (tokens, d_out)
        operands[d_in, d_out] = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
    operands = jax.device_put(operands)

    def step() -> float:
        for shape, count in counts.items():
            for form in forms:
                for _ in range(count):
                    jax.block_until_ready(form(*operands[shape]))
        return float("nan")  # no loss

    return step


def work(name: str, config: ConfigDict, folder: Path) -> None:
    """Is one of the programs: makes two steps for a line of stdin, writes the second's seconds."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    if name.startswith("gptjax"):
        step = ours(config)
    elif name == "matmuls":
        step = matmuls(config)
    else:
        step = theirs(config, folder, compiled=name == "nanogpt-compile")
    print(step(), file=results, flush=True)
    for _ in sys.stdin:
        step()  # not timed: after a pause, a virtual machine's host may have taken memory back
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, file=results, flush=True)


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[Callable[[], float]]:
    """Starts a program; yields a function that times a step of it and returns the seconds."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        to_process, from_process = process.stdin, process.stdout
        assert to_process is not None and from_process is not None

        def read() -> float:
            line = from_process.readline()
            if not line:
                sys.exit(f"error: {' '.join(command)} ended")
            return float(line)

        def step() -> float:
            to_process.write("\n")
            to_process.flush()
            seconds = read()
            time.sleep(_PAUSE)
            return seconds

        loss, expected = read(), np.log(SIZES[command[-1]][-1])  # of an untrained model
        assert np.isnan(loss) or abs(loss - expected) < 0.5, (command, loss)
        yield step
        to_process.close()


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def environments(folder: Path) -> dict[str, dict[str, str]]:
    """Returns the programs that can run here, each with what it adds to the environment."""
    added = {name: _HUGE_PAGES if "huge" in name else {} for name in PROGRAMS}
    compiler = shutil.which("cc")
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        del added["nanogpt-mkl"]
    elif compiler is None:
        print("nanogpt-mkl is left out: there is no C compiler.")
        del added["nanogpt-mkl"]
    else:
        source, library = folder / "intel.c", folder / "intel.so"
        source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        added["nanogpt-mkl"] = {"LD_PRELOAD": str(library)}
    if shutil.which("g++") is None:
        print("nanogpt-compile is left out: there is no C++ compiler.")
        del added["nanogpt-compile"]
    return added


def compare(size: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each program."""
    config = configuration(size, arguments.loss_chunk, arguments.scan_unroll)
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    n_tokens = random_tokens(config)[:, 1:].size
    flops = n_tokens * flops_per_token(model_config)
    attention = n_tokens * 12 * model_config.n_layer * model_config.n_embd * config.model.block_size
    settings = [f"--loss-chunk={arguments.loss_chunk}", f"--scan-unroll={arguments.scan_unroll}"]
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, environment in environments(folder).items():
            if name in arguments.programs:
                command = [sys.executable, "-m", "benchmarks.nanogpt", f"--work={name}"]
                command += [f"--nanogpt={arguments.nanogpt}", *settings, "--size", size]
                contenders[name] = stack.enter_context(started(command, environment))
        seconds = alternate(contenders, arguments.rounds)
    medians = {name: values["median"] for name, values in seconds.items()}
    rate = (flops - attention) / medians["matmuls"] if "matmuls" in medians else None
    rows = []
    for name, values in seconds.items():
        counted = flops - attention if name == "matmuls" else flops
        row: dict[str, Any] = {"size": size, "program": name, "cores": len(os.sched_getaffinity(0))}
        row |= {f"{what}_ms": round(1e3 * value, 1) for what, value in values.items()}
        if "gptjax" in medians:
            row["ratio"] = round(medians[name] / medians["gptjax"], 3)
        row["GFLOP/s"] = round(counted / medians[name] / 1e9, 1)
        if rate is not None:
            row["share"] = round(counted / medians[name] / rate, 3)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--programs", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loss-chunk", type=int, default=0, help="model.loss_chunk")
    parser.add_argument("--scan-unroll", type=int, default=0, help="0: all layers")
    parser.add_argument("--work", choices=PROGRAMS, help=argparse.SUPPRESS)  # used by this file
    arguments = parser.parse_args()
    if not (arguments.nanogpt / "model.py").is_file():
        sys.exit(f"error: {arguments.nanogpt} has no model.py: give a clone of nanoGPT")
    if arguments.work:
        (size,) = arguments.size
        config = configuration(size, arguments.loss_chunk, arguments.scan_unroll)
        work(arguments.work, config, arguments.nanogpt)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = list(
            itertools.chain.from_iterable(
                compare(size, arguments, Path(folder)) for size in arguments.size
            )
        )
    show(f"train step beside nanoGPT, {processor()}", rows)


if __name__ == "__main__":
    main()
