"""The good files: a short run, and what is made from it."""

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq

from configs import debug
from data_pipeline import byte_level
from gptjax.evaluate.__main__ import save
from gptjax.export import export_hf
from gptjax.inference import load_run
from gptjax.train import train_and_evaluate

_EVALS: dict[str, list[dict[str, Any]]] = {
    "hellaswag_val": [
        {
            "activity_label": "a",
            "ctx_a": "b c",
            "ctx_b": "d",
            "endings": ["e f", "g"],
            "label": i % 2,
        }
        for i in range(5)
    ],
    "lambada_test": [{"text": f"some words {i} end"} for i in range(5)],
    "piqa_val": [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}] * 5,
    "arc_easy": [
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    ]
    * 5,
    "winogrande_xs": [{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}] * 5,
}


class Sources:
    """A short run and what is made from it, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = config = debug.get_config()
        config.workdir = str(folder / "run")
        config.data.cache_dir = str(folder / "stores")
        config.compilation_cache_dir = ""
        config.data.prepare_workers = 1
        config.train.max_iters = config.optim.lr_decay_iters = 4
        config.optim.warmup_iters = 1
        config.eval.eval_interval = 2
        config.train.log_interval = 1
        config.log.tensorboard = False

    @functools.cached_property
    def store(self) -> Path:
        """The folder of the token store."""
        return next(p.parent for p in (self.folder / "stores").glob("*/manifest.json"))

    @functools.cached_property
    def params(self) -> str:
        """The digest of the parameters."""
        return (self.folder / "params").read_text()

    @functools.cached_property
    def state(self) -> str:
        """The digest of all arrays of the checkpoint."""
        return (self.folder / "state").read_text()

    def make(self) -> None:
        """Trains four steps of configs/debug.py, and writes the good files."""
        run, folder = self.folder / "run", self.folder
        train_and_evaluate(self.config)
        (folder / "params").write_text(bits(load_run(run).params))
        (folder / "state").write_text(state_bits(run / "checkpoints" / "4"))
        shutil.rmtree(run / "checkpoints" / "2", ignore_errors=True)
        save(run / "eval" / "4.json", {"step": 4, "val": {"loss": 3.0, "loss_stderr": 0.1}})
        export_hf(run, folder / "hf")
        (folder / "hf" / "tokenizer.json").unlink()  # ours has precedence
        (folder / "config").mkdir()
        shutil.copy(run / "config.json", folder / "config")
        (folder / "tokenizer").mkdir()
        shutil.copy(run / "tokenizer.model", folder / "tokenizer")
        vocab = {c: i for i, c in enumerate(sorted(byte_level.BYTES))}
        merges = ["t h", "th e", "a n"]
        vocab |= {m.replace(" ", ""): 256 + i for i, m in enumerate(merges)}
        vocab |= {byte_level.BOS: 259}
        (folder / "tokenizer" / "tokenizer.json").write_bytes(byte_level.make_json(vocab, merges))
        (folder / "parquet").mkdir()
        write_parquet(folder / "parquet" / "a.parquet", compression="zstd")
        (folder / "eval").mkdir()
        for name, lines in _EVALS.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "eval" / f"{name}.jsonl").write_text(text)


def bits(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{path} {x.dtype} {x.shape}".encode() + np.asarray(x).tobytes())
    return digest.hexdigest()


def state_bits(folder: Path) -> str:
    """Returns the digest of all arrays of a checkpoint, as Orbax alone reads them."""
    handler, trees = ocp.PyTreeCheckpointHandler(use_ocdbt=False), []
    for item in ("params", "opt_state", "rng"):
        tree = handler.metadata(folder / item).tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=kinds)
        trees.append(handler.restore(folder / item, args=arguments))
    return bits(trees)


def write_parquet(path: Path, **options: Any) -> None:
    """Writes 60 short documents in three row groups."""
    n = 60
    texts = [f"document {i} {'words ' * (i % 7)}äö" for i in range(n)]
    table = pa.table(
        {"text": texts, "id": [f"<{i}>" for i in range(n)], "token_count": list(range(n))}
    )
    pq.write_table(table, path, row_group_size=20, **options)
