"""Models and tokenizers of other programs."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.changes import Kind, Make, edit, put, special
from benchmarks.hostile.sources import Sources
from data_pipeline.tokenizer import Tokenizer
from gptjax.import_hf import import_hf
from gptjax.inference import load_run

TEXTS = ("", " ", "a  b\n\n c", "\0\ud7ff\uffff e\u0301 \u2581x", "<s><0x41> 1234567", "x" * 300)

# ---- safetensors


def _use_tensors(folder: Path, _: Sources) -> Any:
    out = folder / "imported"
    import_hf(folder, out)
    return np.asarray(load_run(out).params["wte"])


def _right_tensors(folder: Path, _: Sources, wte: Any) -> bool:
    with (folder / "model.safetensors").open("rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        record = json.loads(f.read(n))["transformer.wte.weight"]
        start, end = record["data_offsets"]
        f.seek(8 + n + start)
        data = f.read(end - start)
    kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[record["dtype"]]
    values = np.frombuffer(data, kind).reshape(record["shape"])
    return np.array_equal(wte, values[: len(wte)].astype(np.float32))


def tensors(change: Callable[[dict[str, Any]], Any], grow: int = 0) -> Make:
    """Returns a change of the header of model.safetensors, and `grow` zeros at its end."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        n = struct.unpack("<Q", data[:8])[0]
        tree = json.loads(data[8 : 8 + n])
        change(tree)
        text = json.dumps(tree).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])
        os.truncate(path, path.stat().st_size + grow)

    return make


def _unused(name: str, dtype: str, shape: list[int], size: int) -> Make:
    def change(tree: dict[str, Any]) -> None:
        end = max(r["data_offsets"][1] for key, r in tree.items() if key != "__metadata__")
        tree[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}

    return tensors(change, size)


_WTE_NAME = "transformer.wte.weight"
_KINDS = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U64", "F4")
_SIZES = {kind: 1 if "8" in kind or kind == "BOOL" else 2 for kind in _KINDS}
_KEYS = ("n_layer", "n_head", "n_embd", "n_positions", "n_inner", "vocab_size", "model_type")
_VALUES: tuple[Any, ...] = (0, -1, 3, 2**40, 10**30, 1e30, "x", None, [], {})
_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _header(n: int, content: bytes) -> Make:
    data = struct.pack("<Q", n) + content
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def _dtype(kind: str) -> Make:
    return tensors(lambda tree: tree[_WTE_NAME].update(dtype=kind))


_TENSORS_BY_HAND = {
    **special("model.safetensors"),
    **special("config.json"),
    "6 GiB, unused": _unused("x", "F32", [6 << 28], 6 << 30),
    "0-d, unused": _unused("x", "F32", [], 4),
    "fp8, unused": _unused("x", "F8_E4M3", [2], 2),
    "0-d embedding": tensors(lambda t: t[_WTE_NAME].update(shape=[])),
    "1-d embedding": tensors(lambda t: t[_WTE_NAME].update(shape=[512 * 32])),
    "transposed": tensors(lambda t: t[_WTE_NAME].update(shape=[32, 512])),
    "no embedding": tensors(lambda t: t.pop(_WTE_NAME)),
    "header of 2^63": _header(1 << 63, b""),
    "header of 90 MB": _header(90_000_000, b"{" + b" " * 89_999_998 + b"}"),
    "many tensors": tensors(lambda t: t.update({f"x{i}": _EMPTY for i in range(300_000)})),
    **{f"embedding as {kind}": _dtype(kind) for kind in _KINDS},
    **{f"unused {kind}": _unused("x", kind, [8], 8 * size) for kind, size in _SIZES.items()},
    **{
        f"{key} = {value!r:.20}": put("config.json", key, value)
        for key in _KEYS
        for value in _VALUES
    },
}

# ---- tokenizer


def _use_tokenizer(folder: Path, _: Sources) -> Any:
    return [Tokenizer.load(folder / name) for name in ("tokenizer.model", "tokenizer.json")]


def _right_tokenizer(folder: Path, _: Sources, tokenizers: Any) -> bool:
    small = all(tokenizer.vocab_size <= 1 << 16 for tokenizer in tokenizers)
    return small and all(t.decode(t.encode(x)) == x for t in tokenizers for x in TEXTS)


def _vocab(more: dict[str, int]) -> Make:
    return edit("tokenizer.json", lambda tree: tree["model"]["vocab"].update(more))


def _merge(more: Any) -> Make:
    return edit("tokenizer.json", lambda tree: tree["model"]["merges"].append(more))


_TOKENIZER_BY_HAND = {
    **special("tokenizer.json"),
    **special("tokenizer.model"),
    **{
        f"{key} = {value!r:.20}": put("tokenizer.json", key, value)
        for key in (
            *("model", "model/vocab", "model/merges", "added_tokens", "pre_tokenizer"),
            *("model/type", "model/vocab/th", "normalizer", "added_tokens/0"),
            *("added_tokens/0/id", "added_tokens/0/content", "pre_tokenizer/type"),
        )
        for value in (None, -1, 10**30, "\ud800", [], {}, [1], {"x": 1}, 1.5, "a b c", [["a"]])
    },
    "200,000 tokens": _vocab({f"x{i}": 260 + i for i in range(200_000)}),
    "long token": _vocab({"x" * 10**7: 260}),
    "merges without tokens": _merge(["q", "zz"]),
    "merge of one": _merge(["q"]),
    "merge of three": _merge("a b c"),
}

SAFETENSORS = Kind(
    lambda s: s.folder / "hf", "*.*s*", _use_tensors, _right_tensors, _TENSORS_BY_HAND
)
TOKENIZER = Kind(
    lambda s: s.folder / "tokenizer", "*", _use_tokenizer, _right_tokenizer, _TOKENIZER_BY_HAND
)
