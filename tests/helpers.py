"""What tests of several packages share: the least model, states and their bits, a page's text."""

import dataclasses
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from data_pipeline.tokenizer import SPACE
from gptjax.model.config import GPTConfig

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
    """Returns GPT-2's shape in small, biases and all, in float32; fields of GPTConfig change it."""
    model_config = GPTConfig.from_config(base.get_config(), vocab_size=50)
    tiny = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True}
    machine = {"compute_dtype": "float32", "attention": "xla"}
    return dataclasses.replace(model_config, **{**tiny, **machine, **changes})


def state_of(initial, step):
    """Another state for each step, of values that a compressor cannot guess."""
    rng = np.random.default_rng(step)

    def other(x):
        if x.dtype == jnp.float32:
            return jnp.asarray(rng.normal(size=x.shape), x.dtype)
        return x

    return dataclasses.replace(jax.tree.map(other, initial), step=jnp.int32(step))


def bits(tree):
    """A digest of a tree by code that the checkpoints do not use."""
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(x)
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode() + x.tobytes())
    return digest.hexdigest()


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: its tags, tables, texts, data and notes."""

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
