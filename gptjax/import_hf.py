r"""Imports a GPT-2, Qwen3 or Llama of Hugging Face as a workdir: to evaluate, sample, train from.

gptjax import gpt2 --workdir=runs/gpt2
gptjax generate runs/gpt2
gptjax train workdir:runs/gpt2 init_from=runs/gpt2 \
    tokenizer.file=runs/gpt2/tokenizer.model workdir=runs/gpt2-tuned

The source is a local folder with config.json, model.safetensors (or several and their index) and
the tokenizer: tokenizer.model, tokenizer.json, vocab.json and merges.txt, or OpenAI's encoder.json
and vocab.bpe.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import base, cli
from configs.errors import DataError, UserError
from configs.read import MIB, read_bytes, read_json
from configs.validate import leaves, model_problems, raise_problems, range_problems
from data_pipeline import byte_level
from data_pipeline.files import write_atomically
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import MAX_FILE, Tokenizer
from gptjax.checkpoint import manager
from gptjax.common.workdir import save_config
from gptjax.compat import hf_weights
from gptjax.compat.safetensors_file import open_folder
from gptjax.model import GPTConfig


def import_hf(source: Path, workdir: Path) -> ConfigDict:
    """Creates a workdir with checkpoint 0 from the folder `source`; returns its configuration.

    The configuration is that of configs/base.py with the model's shape. A run with it, in a workdir
    of its own, starts from the model if `init_from` and `tokenizer.file` name the new workdir.

    Raises:
        UserError: the source is no supported model or lacks a file, or the workdir
            exists; nothing is created.
    """
    if workdir.exists():
        raise UserError(f"{workdir} exists: choose another --workdir. Nothing was changed.")
    hf = read_json(source / "config.json", MIB)
    tokenizer_bytes, tokenizer = _tokenizer(source)
    config = base.get_config()
    config.workdir = str(workdir)
    config.tokenizer.vocab_size = tokenizer.vocab_size
    config.model.update(hf_weights.model_settings(hf))
    config.model.bias = config.model.norm == "layernorm"
    raise_problems([*range_problems(leaves(config)), *model_problems(config.model)])
    model_config = GPTConfig.from_config(config, tokenizer.vocab_size)
    tensors = open_folder(source)
    hf_weights.require_shapes(tensors, hf, model_config)
    params, config.model.bias = hf_weights.from_hf(tensors, hf, tokenizer.vocab_size)
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(params)):
        raise UserError(f"{source}: some weights are not finite")
    workdir.mkdir(parents=True)
    write_atomically(workdir / TOKENIZER, tokenizer_bytes)
    manager.save_params(workdir, params, imported_from=str(source))
    save_config(config, workdir)  # last: it makes the folder a workdir
    return config


def _tokenizer(source: Path) -> tuple[bytes, Tokenizer]:
    """Returns the first tokenizer of a folder that can be used, and its file.

    gptjax.export writes tokenizer.model and tokenizer.json: ours has precedence. Llama 3's own
    tokenizer.model is of another kind.
    """
    problems = []
    for name, read in _FORMS.items():
        if all((source / part).is_file() for part in name.split()):
            try:
                model = read(source)
                return model, Tokenizer(model, str(source / name))
            except DataError as error:
                problems.append(error)
    if problems:
        raise problems[-1]
    raise UserError(
        f"{source} has no tokenizer.model, no tokenizer.json, and no vocab.json and merges.txt."
    )


def _gpt2(source: Path, vocab: str, merges: str) -> bytes:
    lines = read_bytes(source / merges, MAX_FILE).decode(errors="replace").split("\n")
    return byte_level.make_json(read_json(source / vocab, MAX_FILE, {str: int}), lines)


_FORMS: dict[str, Callable[[Path], bytes]] = {
    TOKENIZER: lambda source: read_bytes(source / TOKENIZER, MAX_FILE),
    "tokenizer.json": lambda source: read_bytes(source / "tokenizer.json", MAX_FILE),
    "vocab.json merges.txt": lambda source: _gpt2(source, "vocab.json", "merges.txt"),
    "encoder.json vocab.bpe": lambda source: _gpt2(source, "encoder.json", "vocab.bpe"),
}


def _main(_: list[str]) -> None:
    source, workdir = Path(flags.FLAGS.source), Path(flags.FLAGS.workdir)
    config = import_hf(source, workdir)
    shape = config.model
    print(
        f"wrote {workdir}: {shape.n_layer} layers x {shape.n_embd}, {shape.n_head} heads, "
        f"{config.tokenizer.vocab_size:,} tokens, {shape.block_size:,} positions\n"
        f"To train from it: gptjax train workdir:{workdir} init_from={workdir} "
        f"tokenizer.file={workdir / TOKENIZER} workdir=... data.source=..."
    )


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "Folder of the model.", required=True)
    flags.DEFINE_string("workdir", None, "Folder to create.", required=True)
    cli.run_argv(_main, first="source")
