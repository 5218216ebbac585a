"""The model, its loss and its gradients agree with other implementations of GPT-2.

Hugging Face's numbers come from fixtures/gpt2_tiny.npz (how: fixtures/make_gpt2_fixture.py);
minGPT's, with weights that were really trained, from ../shared/weights/gpt-nano-sort beside the
checkout.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gpt2_reference import FIXTURE, from_hf, gpt_config

from gptjax.model import gpt, loss
from gptjax.model.attention import attention

NANO_SORT = Path(__file__).parents[2] / ".." / "shared" / "weights" / "gpt-nano-sort"
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _full_precision():
    with jax.default_matmul_precision("float32"):  # else a GPU multiplies in TF32
        yield


def assert_close(actual: jax.Array, expected: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE, err_msg=what)


def assert_trees_close(actual: gpt.Params, expected: gpt.Params) -> None:
    """Compares leaf by leaf; an error cannot exceed 1e-4 of the leaf's largest value, either."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert a.shape == e.shape, jax.tree_util.keystr(path)
        atol = min(TOLERANCE, 1e-4 * float(np.abs(e).max()))
        np.testing.assert_allclose(a, e, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


class HuggingFace:
    """One variant of the fixture: `bias` or `no_bias`."""

    def __init__(self, variant: str):
        arrays = dict(np.load(FIXTURE))

        def group(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

        hparams = group("hparams/")
        assert hparams["layer_norm_epsilon"] == 1e-5
        self.config = gpt_config(hparams, bias=variant == "bias")
        self.params = from_hf(group("weights/"), self.config)
        self.tokens_BT = arrays["input_ids"].astype(np.int32)
        self.logits_BTV = arrays[f"{variant}/logits"]
        self.loss = arrays[f"{variant}/loss"]
        self.grads = from_hf(group(f"{variant}/grads/"), self.config)


@pytest.fixture(params=["bias", "no_bias"])
def hf(request) -> HuggingFace:
    return HuggingFace(request.param)


def test_params_have_the_shapes_of_hugging_face(hf):
    ours = jax.eval_shape(lambda: gpt.init(hf.config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, hf.params)


def test_logits_agree_with_hugging_face(hf):
    x_BTD = gpt.hidden_states(hf.config, hf.params, hf.tokens_BT)
    assert_close(gpt.logits(hf.config, hf.params, x_BTD), hf.logits_BTV, "logits")


@pytest.mark.parametrize("chunk", [0, 23])
def test_loss_and_gradients_agree_with_hugging_face(hf, chunk):
    inputs_BT, targets_BT = hf.tokens_BT[:, :-1], hf.tokens_BT[:, 1:]

    @jax.jit
    def mean_loss(params: gpt.Params) -> jax.Array:
        x_BTD = gpt.hidden_states(hf.config, params, inputs_BT)
        total = loss.cross_entropy_sum(
            x_BTD, gpt.unembedding(params), targets_BT, np.ones_like(targets_BT), chunk=chunk
        )
        return total / targets_BT.size

    value, grads = jax.value_and_grad(mean_loss)(jax.tree.map(jnp.asarray, hf.params))
    assert_close(value, hf.loss, "loss")
    assert_trees_close(grads, hf.grads)


def decode(entry: Mapping[str, str | list[int]]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["data"]), np.float32).reshape(entry["shape"])


@pytest.mark.slow
def test_every_activation_of_a_trained_mingpt():
    if not NANO_SORT.is_dir():
        pytest.skip(f"needs the trained weights in {NANO_SORT}")
    file = json.loads((NANO_SORT / "model.json").read_text())
    # minGPT's names are Hugging Face's, its nn.Linear matrices are [out, in], its head is not tied.
    weights = {name: decode(entry) for name, entry in file.items() if name != "config"}
    hf_weights = {
        name: w.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else w
        for name, w in weights.items()
    }
    hparams = file["config"] | {"n_positions": file["config"]["block_size"]}
    config = gpt_config(hparams, bias=True)
    params = jax.tree.map(jnp.asarray, from_hf(hf_weights, config))

    partials = json.loads((NANO_SORT / "partials.json").read_text())
    expected = {name: decode(entry) for name, entry in partials.items() if name != "config"}
    tokens_BT = expected["idx"].astype(np.int32)

    module = nnx.merge(nnx.split(gpt.GPT(config, key=jax.random.key(0)))[0], params)
    block_def, blocks_L = nnx.split(module.blocks)
    blocks = [
        nnx.merge(block_def, jax.tree.map(lambda a, i=i: a[i], blocks_L))
        for i in range(config.n_layer)
    ]
    actual = {}

    # The first block, by hand, from our own submodules.
    block = blocks[0]
    actual["tok_emb"] = params["wte"][tokens_BT]
    actual["pos_emb"] = params["wpe"][None]
    actual["x"] = x_BTD = actual["tok_emb"] + actual["pos_emb"]
    actual["ln1"] = block.ln_1(x_BTD)
    actual["qkv"] = block.attn.c_attn(actual["ln1"])
    heads = (*tokens_BT.shape, config.n_head, config.head_dim)
    q_BTNH, k_BTNH, v_BTNH = (y.reshape(heads) for y in jnp.split(actual["qkv"], 3, axis=-1))
    for name, y_BTNH in (("q", q_BTNH), ("k", k_BTNH), ("v", v_BTNH)):
        actual[name] = y_BTNH.swapaxes(1, 2)
    # With unit vectors for values, attention returns its own weights.
    one_hot_BTNH = jnp.broadcast_to(jnp.eye(heads[1], heads[3])[None, :, None], heads)
    weights_BTNS = attention(q_BTNH, k_BTNH, one_hot_BTNH, implementation="xla")[..., : heads[1]]
    actual["attSm"] = weights_BTNS.swapaxes(1, 2)
    actual["y"] = attention(q_BTNH, k_BTNH, v_BTNH, implementation="xla").reshape(x_BTD.shape)

    def attend(q_BTNH, k_BTNH, v_BTNH):
        return attention(q_BTNH, k_BTNH, v_BTNH, implementation="xla"), None

    actual["yProj"], _ = block.attn(actual["ln1"], None, attend)
    actual["attnResid"] = x_BTD + actual["yProj"]
    actual["ln2"] = block.ln_2(actual["attnResid"])
    actual["fc"] = block.mlp.c_fc(actual["ln2"])
    actual["mlp"] = block.mlp(actual["ln2"])
    actual["mlpResid"] = actual["attnResid"] + actual["mlp"]

    # All blocks, one after the other, and the whole model.
    for i, block in enumerate(blocks):
        x_BTD, _ = block(x_BTD, None, attend)
        actual[f"block{i}"] = x_BTD
    actual["ln_f"] = gpt.hidden_states(config, params, tokens_BT)
    head = {"wte": jnp.asarray(weights["lm_head.weight"])}
    actual["lm_head"] = gpt.logits(config, head, actual["ln_f"])
    actual["probs"] = jax.nn.softmax(actual["lm_head"])

    # Not reached: scores before the softmax, and the GELU's own output; attSm and mlp cover them.
    assert set(expected) - set(actual) == {"idx", "att", "gelu"}
    for name, a in actual.items():
        assert_close(a, expected[name], name)
