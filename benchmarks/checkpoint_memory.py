"""Memory and time of saving and restoring a checkpoint, by each of several processes.

    python -m benchmarks.checkpoint_memory --processes=4

The state is that of a GPT of 110M parameters with AdamW, split over CPU devices, one a process. A
process's share is what its device holds; MB is the peak of its memory less what it had before: a
save begins with the share, a restore without.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import free_port, show

_MB = 1e6


def resident(name: str) -> int:
    """Returns a line of /proc/self/status, such as VmRSS, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def growth(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Returns what `work` returns, its seconds, and by how much memory grew meanwhile, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = resident("VmRSS"), time.monotonic()
    value = work()
    seconds = time.monotonic() - start
    return value, {"seconds": seconds, "MB": (resident("VmHWM") - before) / _MB}


def worker(address: str, n: int, process: int, workdir: Path, *, restore: bool) -> None:
    """Prints what one process measures, as JSON."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    if n > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, n, process)
    import numpy as np

    from configs import base
    from gptjax.checkpoint import Checkpoints
    from gptjax.model import GPTConfig
    from gptjax.step import StepFunctions, make_mesh

    store: Any = types.SimpleNamespace(
        hash="", identity={}, mixture=None, tokenizer=types.SimpleNamespace(hash="")
    )
    rng = np.random.default_rng(process)

    def make(folder: Path, **shape: int) -> tuple[Any, Any]:
        config = base.get_config()
        config.mesh.fsdp = n
        config.model.update(n_layer=12, block_size=1024, **shape)
        model_config = GPTConfig.from_config(config, vocab_size := 32_768)
        token_bytes = np.ones(vocab_size, np.int32)
        steps = StepFunctions(config, model_config, token_bytes, make_mesh(n))
        return Checkpoints(folder, config, store), steps

    def draw(x: Any, sharding: Any) -> Any:
        def part(index: Any) -> np.ndarray:
            shape = sharding.shard_shape(x.shape)
            if x.dtype != np.float32:
                return np.ones(shape, x.dtype)
            whole = sharding.is_fully_replicated  # the same on all processes
            return (np.random.default_rng(0) if whole else rng).standard_normal(shape, np.float32)

        return jax.make_array_from_callback(x.shape, sharding, part)

    def draw_state(steps: Any) -> Any:
        return jax.tree.map(draw, steps.state_shapes, steps.state_shardings)

    # Libraries, their threads and the compiler are there before, as in a run that trains.
    checkpoints, steps = make(workdir / f"small-{restore}", n_head=1, n_embd=64)
    save(checkpoints, draw_state(steps))
    checkpoints.restore(steps)
    checkpoints.close()
    checkpoints, steps = make(workdir / "large", n_head=12, n_embd=768)
    result: dict[str, Any]
    if restore:
        (state, _), result = growth(lambda: checkpoints.restore(steps))
    else:
        state = draw_state(steps)
        blocked, result = growth(lambda: save(checkpoints, state))
        assert checkpoints.latest_step == 1
        result["blocked"] = blocked
    share = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)) / _MB
    checkpoints.close()
    print(json.dumps({"share": share, **result, "MB / share": result["MB"] / share}))


def save(checkpoints: Any, state: Any) -> float:
    """Saves a state, and returns the seconds for which training would have waited."""
    from gptjax.checkpoint import RunProgress

    start = time.monotonic()
    checkpoints.save(state, RunProgress())
    blocked = time.monotonic() - start
    checkpoints.wait()
    return blocked


def run(n: int, workdir: Path, *, restore: bool) -> list[dict[str, Any]]:
    """Returns what each of `n` processes measures."""
    address = f"localhost:{free_port()}"
    command = [sys.executable, "-m", "benchmarks.checkpoint_memory", f"--workdir={workdir}"]
    command += [f"--processes={n}", f"--address={address}", *(["--restore"] if restore else [])]
    started = [
        subprocess.Popen([*command, f"--worker={i}"], stdout=subprocess.PIPE, text=True)
        for i in range(n)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    n = args.processes
    if args.worker is not None:
        worker(args.address, n, args.worker, args.workdir, restore=args.restore)
        return
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        for name, restore in (("save", False), ("restore", True)):
            results = run(n, workdir, restore=restore)
            show(name, [{"process": i, **result} for i, result in enumerate(results)])


if __name__ == "__main__":
    main()
