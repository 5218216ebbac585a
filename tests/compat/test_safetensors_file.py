"""Tensors of other people's files: only what is wanted is read, if it is what it must be."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import perturbed_params, tiny_gpt

from configs.errors import UserError
from gptjax.compat import hf_weights
from gptjax.compat.safetensors_file import SafeTensors
from gptjax.compat.safetensors_file import write as write_tensors


def write(path, records, data=b"", grow=0):
    header = json.dumps(records).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    os.truncate(path, path.stat().st_size + grow)
    return path


def record(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_tensors_are_those_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.flax", reason="is a package for development")
    rng = np.random.default_rng(0)
    tensors = {
        "a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "c": jnp.asarray(rng.normal(size=(2, 2, 2)), jnp.float16),
        "d": jnp.float32(3),
        "e": jnp.zeros((0, 4)),
    }
    library.save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    ours = SafeTensors(tmp_path / "x")
    assert set(ours) == set(tensors) and len(ours) == 5
    for name, array in tensors.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(array))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_library_reads_what_is_written(dtype, tmp_path):
    library = pytest.importorskip("safetensors.flax", reason="is a package for development")
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(3, 5)), "b.c": rng.normal(size=7), "d": rng.normal(size=0)}
    tensors = {name: np.float32(array) for name, array in tensors.items()}
    tensors["transposed"] = tensors["a"].T
    write_tensors(tmp_path / "x", tensors, dtype)
    theirs = library.load_file(tmp_path / "x")
    assert set(theirs) == set(tensors)
    for name, array in tensors.items():
        assert theirs[name].dtype == dtype and theirs[name].shape == array.shape
        np.testing.assert_array_equal(theirs[name], jnp.asarray(array, dtype))


def test_what_is_not_asked_for_is_not_read(tmp_path):
    records = {
        "a": record("F32", [2], 0, 8),
        "huge": record("F32", [1 << 38], 8, 8 + (1 << 40)),
        "fp8": record("F8_E4M3", [8], 0, 8),
        "scalar": record("F32", [], 0, 4),
        "__metadata__": {"format": "pt"},
    }
    path = write(tmp_path / "x", records, np.float32([1, 2]).tobytes(), grow=1 << 40)
    tensors = SafeTensors(path)
    assert tensors["a"].tolist() == [1, 2] and tensors["scalar"].tolist() == 1
    assert tensors["huge"].shape == (1 << 38,)  # mapped
    with pytest.raises(UserError, match="fp8 has the dtype F8_E4M3.*convert"):
        tensors["fp8"]


@pytest.mark.parametrize(
    "bad",
    [
        record("F32", [2], 0, 16),
        record("F32", [2], 0, 4),
        record("F32", [2], 8, 0),
        record("F32", [2], -8, 0),
        record("F32", [2], 4, 12),
        record("F32", [-2], 0, 8),
        record("F32", [-1, -2], 0, 8),
        record("F32", [1 << 62, 4], 0, 8),
        record("F32", [10**30], 0, 8),
    ],
)
def test_places_outside_the_file_are_refused(tmp_path, bad):
    path = write(tmp_path / "x", {"a": bad}, bytes(8))
    with pytest.raises(UserError, match="x is damaged"):
        SafeTensors(path)["a"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_a_header_that_is_none(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="x is damaged"):
        SafeTensors(tmp_path / "x")
    with pytest.raises(UserError, match="y is damaged .No such file"):
        SafeTensors(tmp_path / "y")
    with pytest.raises(UserError, match="is damaged .it is no regular file"):
        SafeTensors(tmp_path)


class Shapes(dict):
    """Tensors that must not be read."""

    def __getitem__(self, name):
        return np.broadcast_to(np.float32(0), super().__getitem__(name))


QWEN3 = {"norm": "rmsnorm", "position": "rope", "qk_norm": True, "mlp": "swiglu", "bias": False}


@pytest.mark.parametrize("changes", [{}, {**QWEN3, "n_kv_head": 1}, {"tie_embeddings": False}])
def test_shapes_are_compared_before_anything_is_read(changes, store):
    model_config = tiny_gpt(vocab_size=store.tokenizer.vocab_size, **changes)
    hf = hf_weights.hf_config(model_config, store.tokenizer)
    tensors = hf_weights.to_hf(model_config, perturbed_params(model_config), 512)
    shapes = Shapes({name: array.shape for name, array in tensors.items()})
    hf_weights.require_shapes(shapes, hf, model_config)
    embedding = next(name for name in shapes if "wte" in name or "embed_tokens" in name)
    padded = Shapes({**shapes, embedding: (600, 16), "more": (1 << 40,)})
    hf_weights.require_shapes(padded, hf, model_config)  # as the parser of a padded vocabulary does
    for name in shapes:
        for wrong in ((), (1 << 40,), (*tensors[name].shape, 1)):
            with pytest.raises(UserError, match="disagree: .* is .*, not"):
                hf_weights.require_shapes(Shapes({**shapes, name: wrong}), hf, model_config)
    with pytest.raises(UserError, match="2 layers, but there are 1 tensors"):
        hf_weights.require_shapes(Shapes({embedding: (512, 16)}), hf, model_config)
