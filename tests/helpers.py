"""Shared by tests of several files: a tiny model, states and their bits, a page's text."""

import contextlib
import dataclasses
import functools
import hashlib
import html.parser
import http.client
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from configs import base
from data_pipeline.token_store import MANIFEST, file_record, write_manifest
from data_pipeline.tokenizer import SPACE
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import hidden_states, init, unembedding
from gptjax.model.loss import cross_entropy_sum

HOSTILE = [
    "",
    " ",
    "   leading, trailing and    inner   ",
    SPACE,
    f"{SPACE}{SPACE} a{SPACE}b {SPACE}\n{SPACE}",
    "\0",
    "a\0b",
    "line\r\nline\rline\n\n\n\ttab\t\tx \t y",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\x9f",
    "<s></s><unk><pad><0x41><0xE2>",
    "\U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea 👍🏽",
    "e\u0301 \u00e9 \u212b \ufb01 \u1e9b\u0323",  # normalisation would merge or split these
    "\u00a0\u2003\u3000\u200b\ufeff x",  # other spaces
    "\ufffd\ue000\U0010ffff\ud7ff\u2585\u2047",
    "日本語のテキスト العربية हिन्दी",
    "x" * 1000 + " " * 1000 + "y",
    f"{'long' * 100}{SPACE * 300}",
    "1234567890 3.14",
]


def tiny_gpt(**changes: Any) -> GPTConfig:
    """Returns a tiny float32 GPT-2 with biases; `changes` are keys of `config.model`."""
    config = base.get_config()
    tiny = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True}
    machine = {"compute_dtype": "float32", "attention": "xla"}
    vocab_size = changes.pop("vocab_size", 50)
    config.model.update({**tiny, **machine, **changes})
    return GPTConfig.from_config(config, vocab_size)


def perturbed_params(model_config):
    """Ten times the initial values, scales not 1 and biases not 0: every part matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: 10 * p if p.std() > 0 else p + jnp.float32(rng.normal(0, 0.2, p.shape)),
        init(model_config, jax.random.key(0)),
    )


def mean_loss(model_config, tokens_BT, params):
    """The loss of each token but the first, given those before it."""
    x_BTD = hidden_states(model_config, params, tokens_BT[:, :-1])
    targets_BT = tokens_BT[:, 1:]
    mask_BT = np.ones_like(targets_BT)
    total = cross_entropy_sum(x_BTD, unembedding(params), targets_BT, mask_BT, chunk=0)
    return total / targets_BT.size


def optimizer_step(optimizer):
    """Returns (params, state, gradients of each micro-step) -> (params, state), compiled."""
    accumulate = jax.jit(optimizer.accumulate)
    update = jax.jit(functools.partial(optimizer.update, loss=jnp.float32(1)))

    def step(params, state, micro_grads):
        micro_grads = [jax.tree.map(jnp.float32, grads) for grads in micro_grads]
        if len(micro_grads) == 1:
            return update(params, state, micro_grads[0])
        total = optimizer.accumulator(jax.tree.map(jnp.zeros_like, micro_grads[0]))
        for grads in micro_grads:
            total = accumulate(grads, total)
        return update(params, state, total.acc_grads)

    return step


def equations(jaxpr):
    """All equations of a jaxpr, including nested ones."""
    for equation in jaxpr.eqns:
        yield equation
        for sub in jaxprs_in_params(equation.params):
            yield from equations(sub)


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance, err_msg=jax.tree_util.keystr(path))


def state_of(initial, step):
    """A different state for each step, of values that do not compress."""
    rng = np.random.default_rng(step)

    def randomize(x):
        if x.dtype == jnp.float32:
            return jnp.asarray(rng.normal(size=x.shape), x.dtype)
        return x

    return dataclasses.replace(jax.tree.map(randomize, initial), step=jnp.int32(step))


def bits(tree):
    """A digest of a tree, independent of the code of checkpoints."""
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(x)
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode() + x.tobytes())
    return digest.hexdigest()


def ask(port, method, path, body=None, **headers):
    """Returns the status and the decoded JSON of a local server's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        standard = {"Content-Type": "application/json"} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {**standard, **named})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def flip_bit(path, where, bit):
    data = bytearray(path.read_bytes())
    data[where] ^= 1 << bit
    path.write_bytes(data)


def forge(checkpoint, change):
    """Changes the meta of a checkpoint and gives it the right digest, as anybody can."""
    path = checkpoint / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["sha256"]
    change(meta)
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**meta, "sha256": digest}))


def with_ids(folder, split, ids):
    """Replaces the first ids of a split of a store; the manifest has the hash of the new file."""
    path = folder / f"00000-{split}.tokens"
    tokens = np.fromfile(path, "<u2")
    tokens[: len(ids)] = ids
    tokens.tofile(path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][path.name] = file_record(path)
    write_manifest(folder, manifest)


class Page(html.parser.HTMLParser):
    """An HTML page as a browser parses it: tags, tables, texts and data."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.texts, self._stack = [], [], [], []
        self.source = Path(path).read_text()
        self.feed(self.source)
        self.close()
        raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.source)
        self.data = json.loads(raw[1], parse_constant=pytest.fail)  # NaN is not JSON

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("pre", "p", "h1", "summary"):
            self.texts.append("")

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, text):
        if self._stack and self._stack[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        elif self._stack and self._stack[-1] in ("pre", "p", "h1", "summary"):
            self.texts[-1] += text

    def row(self, name):
        """The cells of the first row with this heading."""
        return next(row[1:] for row in self.rows if row[0] == name)

    def curve(self, name, run=0):
        """The table of the run that holds `name`, and its values."""
        table = next(t for t in self.data["runs"][run]["tables"] if name in t["values"])
        return table, table["values"][name]
