"""Configurations, checkpoints and metrics of workdirs."""

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa

from benchmarks.hostile.changes import Kind, Make, edit, put, special, text
from benchmarks.hostile.mutations import LONG_NUMBER
from benchmarks.hostile.sources import Sources, bits, state_bits
from configs.validate import leaves
from gptjax.checkpoint import verify
from gptjax.common.workdir import load_config
from gptjax.inference import load_run
from gptjax.model import GPTConfig, count_params, gpt
from gptjax.report.page import write_report

# ---- workdir


def _use_config(folder: Path, _: Sources) -> Any:
    config = load_config(folder)
    model_config = GPTConfig.from_config(config, 512)
    count_params(model_config)
    jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    return config


def _right_config(folder: Path, _: Sources, config: Any) -> bool:
    saved = leaves(json.loads((folder / "config.json").read_text()))
    mine = leaves(json.loads(config.to_json()))
    shape = [key for key in saved if key.startswith("model.")]
    return all(saved[key] == mine[key] for key in shape) and _sane(mine)


def _sane(values: dict[str, Any]) -> bool:
    sizes = [values[f"model.{key}"] for key in ("n_layer", "n_head", "n_embd", "block_size")]
    return all(isinstance(size, int) and size > 0 for size in sizes)


_SIZES: tuple[Any, ...] = (*(0, -1, 3, 10**9, 2**62, 10**30, 1.5, "x", None, [], float("nan")),)
_CONFIG_BY_HAND = {
    **special("config.json"),
    **{
        f"model.{key} = {value!r:.20}": put("config.json", f"model/{key}", value)
        for key in ("n_layer", "n_head", "n_embd", "block_size", "n_kv_head", "mlp_dim")
        for value in _SIZES
    },
    "long number": text("config.json", f'{{"seed": {LONG_NUMBER}}}'),
    "surrogate": put("config.json", "sample/prompts", ["\ud800"]),
    "prompts of numbers": put("config.json", "sample/prompts", [1, {}]),
    "big": text("config.json", '{"seed": 1' + " " * (5 << 20) + "}"),
    "many": text(
        "config.json", '{"model": {' + ",".join(f'"k{i}": 1' for i in range(100_000)) + "}}"
    ),
    "dotted": put("config.json", "model.n_layer", 3),
    "rope of nan": put("config.json", "model/rope_theta", float("nan")),
}

# ---- checkpoint

_META = "checkpoints/4/meta/metadata"


def _use_checkpoint(folder: Path, _: Sources) -> Any:
    problems = verify(folder)
    return bits(load_run(folder).params), problems


def _right_checkpoint(folder: Path, sources: Sources, result: Any) -> bool:
    """The parameters are the saved ones; a checkpoint that is called good is, as Orbax reads it."""
    params, problems = result
    is_good = problems[4] == ""
    state = state_bits(folder / "checkpoints" / "4") if is_good else sources.state
    return bool(params == sources.params and state == sources.state)


def meta(change: Callable[[Any], Any]) -> Make:
    """Returns a change of the meta."""
    return edit(_META, change)


def header(**changes: Any) -> Make:
    """Returns a change of the header of an array."""

    def make(folder: Path) -> None:
        path = folder / "checkpoints" / "4" / "params" / "wte" / ".zarray"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def claim(shape: list[int], dtype: str = "float32") -> Make:
    """Returns a checkpoint whose meta and header agree on a shape."""

    def make(folder: Path) -> None:
        meta(lambda m: m["arrays"]["params"]["wte"].update(shape=shape, dtype=dtype))(folder)
        header(shape=shape, chunks=[min(n, 1 << 20) for n in shape])(folder)

    return make


def bomb(size: int) -> Make:
    """Returns a change of an array's file to one that decompresses to `size` bytes."""

    def make(folder: Path) -> None:
        path = folder / "checkpoints" / "4" / "params" / "wte" / "0.0"
        with pa.CompressedOutputStream(str(path), "zstd") as f:
            for _ in range(size >> 20):
                f.write(bytes(1 << 20))

    return make


_WTE = "checkpoints/4/params/wte/0.0"
_CHECKPOINT_BY_HAND = {
    **special(_META),
    **special(_WTE),
    **special("checkpoints/4/params/wte/.zarray"),
    **special("checkpoints/4/params/_METADATA"),
    **special("tokenizer.model"),
    "64 GiB": header(shape=[1 << 17, 1 << 17], chunks=[1 << 17, 1 << 17]),
    "64 GiB in small chunks": header(shape=[1 << 17, 1 << 17]),
    "chunks of 64 GiB": header(chunks=[1 << 17, 1 << 17]),
    "64 GiB, agreed": claim([1 << 17, 1 << 17]),
    "2^62, agreed": claim([1 << 31, 1 << 31]),
    "-1, agreed": claim([-1, 32]),
    "no such dtype": claim([512, 32], "float33"),
    "another dtype": header(dtype="<f8"),
    "an object": header(dtype="|O"),
    "blosc": header(compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}),
    "no compressor": header(compressor=None),
    "a filter": header(filters=[{"id": "delta"}]),
    "bomb": bomb(8 << 30),
    "no arrays": meta(lambda m: m.update(arrays={})),
    "nothing": meta(lambda m: [m.pop(k) for k in list(m) if k not in ("format", "step", "sha256")]),
    "arrays of another shape": meta(lambda m: m.update(arrays=[1])),
    "records of nothing": meta(lambda m: m["arrays"]["params"].update(wte={})),
    "val_loss": meta(lambda m: m.update(val_loss="x")),
    "progress": meta(lambda m: m.update(progress=3)),
    "step": meta(lambda m: m.update(step="4")),
    "config": meta(lambda m: m.update(config=[])),
    "another item": meta(lambda m: m["arrays"].update(more={"x": {}})),
    "a step of 60 digits": lambda folder: (folder / "checkpoints" / ("9" * 60)).mkdir(),
    "surrogate": text(_META, '{"\\ud800": 1}'),
    "scalar": lambda folder: edit(
        "checkpoints/4/params/_METADATA",
        lambda tree: [
            v["value_metadata"].update(value_type="scalar") for v in tree["tree_metadata"].values()
        ],
    )(folder),
    "zarr 3": put("checkpoints/4/params/_METADATA", "use_zarr3", True),
    "ocdbt": text("checkpoints/4/params/manifest.ocdbt", b"x" * 100),
}
_CHECKPOINT_BY_HAND |= {
    f"kind {kind}": edit(
        "checkpoints/4/params/_METADATA",
        functools.partial(
            lambda tree, kind: [
                v["value_metadata"].update(value_type=kind) for v in tree["tree_metadata"].values()
            ],
            kind=kind,
        ),
    )
    for kind in ("string", "jax.Array", "None", "Dict", "x", "int")
}

# ---- metrics


def _use_metrics(folder: Path, _: Sources) -> Any:
    page = write_report(folder).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda name: 1 / 0), page


def _right_metrics(folder: Path, _: Sources, result: Any) -> bool:
    steps = set()
    for raw in (folder / "metrics.jsonl").read_text(errors="replace").splitlines():
        found = re.match(r'\{"step": (\d{1,9}),', raw)
        if found:
            steps.add(int(found[1]))
    drawn = {s for run in result[0]["runs"] for t in run["tables"] for s in t["step"]}
    return all(isinstance(s, int) and s >= 0 and math.isfinite(s) for s in drawn)


def _two_lines(key: str, value: Any) -> str:
    lines = ({"step": 1, key: value}, {"step": 2, "train/loss": 1.0, key: value})
    return "".join(json.dumps(line) + "\n" for line in lines)


_NAMES = """
    time train/loss val/loss val/bits_per_byte data/tokens_seen perf/train_seconds run/start_step
    skipped/loss skipped/documents benchmark/piqa/acc benchmark/piqa/n
""".split()
_STRANGE: tuple[Any, ...] = (
    None,
    -1,
    True,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "x",
    [],
    {},
    [[1]],
)
_SCORES: tuple[Any, ...] = (
    {"x": {"y": []}},
    {"piqa": {"acc": "x"}},
    {"piqa": {"acc": None, "n": []}},
)
_METRICS_BY_HAND = {
    **special("metrics.jsonl"),
    **special("config.json"),
    **special("samples/4.txt"),
    **special("eval/4.json"),
    "long number": text("metrics.jsonl", f'{{"step": 1, "train/loss": {LONG_NUMBER}}}\n' * 3),
    "long step": text("metrics.jsonl", f'{{"step": {LONG_NUMBER}}}\n'),
    "5 million lines": text("metrics.jsonl", '{"step":1}\n' * 5_000_000),
    "surrogate": text("metrics.jsonl", '{"step": 1, "\\ud800": 1, "time": "\\udfff"}\n'),
    "a line of 100 MB": text("metrics.jsonl", '{"step": 1, "x": "' + "y" * 100_000_000 + '"}\n'),
    "brackets": text("metrics.jsonl", '{"step": 1, "x": [' + "[]," * 5_000_000 + "[]]}\n"),
    "script": text("metrics.jsonl", '{"step": 1, "</script><script>alert(1)</script>": 1}\n'),
    **{
        f"{key} = {value!r:.20}": text("metrics.jsonl", _two_lines(key, value))
        for key in _NAMES
        for value in _STRANGE
    },
    **{
        f"eval {key} = {value!r:.20}": text("eval/4.json", json.dumps({key: value}))
        for key in ("val", "benchmarks", "text", "n_params", "step")
        for value in (*_STRANGE, *_SCORES)
    },
}

WORKDIR = Kind(lambda s: s.folder / "config", "*", _use_config, _right_config, _CONFIG_BY_HAND)
CHECKPOINT = Kind(
    lambda s: s.folder / "run",
    "checkpoints/4/**/*",
    _use_checkpoint,
    _right_checkpoint,
    _CHECKPOINT_BY_HAND,
)
METRICS = Kind(
    lambda s: s.folder / "run", "metrics.jsonl", _use_metrics, _right_metrics, _METRICS_BY_HAND
)
