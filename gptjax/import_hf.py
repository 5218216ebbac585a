r"""Imports a GPT-2 or Qwen3 of Hugging Face as a workdir: to evaluate, sample, and train from.

python -m gptjax.import_hf --source=gpt2 --workdir=runs/gpt2
python -m gptjax.generate --workdir=runs/gpt2
python -m gptjax.main --config=configs/workdir.py:runs/gpt2 --config.init_from=runs/gpt2 \
    --config.tokenizer.file=runs/gpt2/tokenizer.model --config.workdir=runs/gpt2-tuned

The source is a local folder with config.json, model.safetensors and the tokenizer: tokenizer.json,
or vocab.json and merges.txt, or OpenAI's encoder.json and vocab.bpe.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import base, cli
from configs.errors import UserError
from configs.read import MIB, read_bytes, read_json
from configs.validate import leaves, model_problems, raise_problems, range_problems
from data_pipeline import byte_level
from data_pipeline.files import write_atomically
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import MAX_FILE, Tokenizer
from gptjax.checkpoint import manager
from gptjax.common.workdir import save_config
from gptjax.compat import hf_weights
from gptjax.compat.safetensors_file import SafeTensors
from gptjax.model import GPTConfig


def import_hf(source: Path, workdir: Path) -> ConfigDict:
    """Creates a workdir with checkpoint 0 from the folder `source`; returns its configuration.

    The configuration is that of configs/base.py with the model's shape. A run with it, in a workdir
    of its own, starts from the model if `init_from` and `tokenizer.file` name the new workdir.

    Raises:
        UserError: the source is not a supported GPT-2 or Qwen3 or lacks a file, or the workdir
            exists; nothing is created.
    """
    if workdir.exists():
        raise UserError(f"{workdir} exists: choose another --workdir. Nothing was changed.")
    hf = read_json(source / "config.json", MIB)
    tokenizer_bytes = _tokenizer(source)
    tokenizer = Tokenizer(tokenizer_bytes, str(source))
    config = base.get_config()
    config.workdir = str(workdir)
    config.tokenizer.vocab_size = tokenizer.vocab_size
    config.model.update(hf_weights.model_settings(hf))
    config.model.bias = config.model.norm == "layernorm"
    raise_problems([*range_problems(leaves(config)), *model_problems(config.model)])
    model_config = GPTConfig.from_config(config, tokenizer.vocab_size)
    path = source / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing. (Other formats run code when read: convert them.)")
    tensors = SafeTensors(path)
    hf_weights.require_shapes(tensors, hf, model_config)
    params, config.model.bias = hf_weights.from_hf(tensors, hf, tokenizer.vocab_size)
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(params)):
        raise UserError(f"{source}: some weights are not finite")
    workdir.mkdir(parents=True)
    write_atomically(workdir / TOKENIZER, tokenizer_bytes)
    manager.save_params(workdir, params, imported_from=str(source))
    save_config(config, workdir)  # last: it makes the folder a workdir
    return config


def _tokenizer(source: Path) -> bytes:
    """Returns the content of the workdir's tokenizer.model."""
    for name in (TOKENIZER, "tokenizer.json"):  # gptjax.export writes both: ours has precedence
        if (source / name).is_file():
            return read_bytes(source / name, MAX_FILE)
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (source / vocab).is_file() and (source / merges).is_file():
            lines = read_bytes(source / merges, MAX_FILE).decode(errors="replace").split("\n")
            ids = read_json(source / vocab, MAX_FILE, {str: int})
            return byte_level.make_json(ids, lines)
    raise UserError(f"{source} has no tokenizer.json, and no vocab.json and merges.txt.")


def _main(_: list[str]) -> None:
    source, workdir = Path(flags.FLAGS.source), Path(flags.FLAGS.workdir)
    config = import_hf(source, workdir)
    shape = config.model
    print(
        f"wrote {workdir}: {shape.n_layer} layers x {shape.n_embd}, {shape.n_head} heads, "
        f"{config.tokenizer.vocab_size:,} tokens, {shape.block_size:,} positions\n"
        f"To train from it: python -m gptjax.main --config=configs/workdir.py:{workdir} "
        f"--config.init_from={workdir} --config.tokenizer.file={workdir / TOKENIZER} "
        f"--config.workdir=..."
    )


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "Folder of the model.", required=True)
    flags.DEFINE_string("workdir", None, "Folder to create.", required=True)
    cli.run_argv(_main, first="source")
