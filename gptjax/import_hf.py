r"""Imports a GPT-2 or Qwen3 of Hugging Face as a workdir: to evaluate, sample, and train from.

python -m gptjax.import_hf --source=gpt2 --workdir=runs/gpt2
python -m gptjax.generate --workdir=runs/gpt2
python -m gptjax.main --config=configs/workdir.py:runs/gpt2 --config.init_from=runs/gpt2 \
    --config.tokenizer.file=runs/gpt2/tokenizer.model --config.workdir=runs/gpt2-tuned

The source is a local folder with config.json, model.safetensors and the tokenizer: tokenizer.json,
or vocab.json and merges.txt, or OpenAI's encoder.json and vocab.bpe.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import base, cli
from configs.errors import UserError
from data_pipeline import gpt2_tokenizer
from data_pipeline.files import write_atomically
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.checkpoint import manager
from gptjax.common.extras import imports_of_extra
from gptjax.common.workdir import save_config
from gptjax.compat import hf_weights
from gptjax.model import GPTConfig, Params, gpt


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
    hf = _read_json(source / "config.json")
    tokenizer_bytes = _tokenizer(source)
    tokenizer = Tokenizer(tokenizer_bytes, str(source))
    if tokenizer.vocab_size > 65_536:
        raise UserError(
            f"{source}: its {tokenizer.vocab_size:,} tokens are over 65,536, the limit of 16 bits"
        )
    config = base.get_config()
    config.workdir = str(workdir)
    config.tokenizer.vocab_size = tokenizer.vocab_size
    config.model.update(hf_weights.model_settings(hf))
    tensors = _tensors(source / "model.safetensors")
    params, config.model.bias = hf_weights.from_hf(tensors, hf, tokenizer.vocab_size)
    _check_shapes(params, GPTConfig.from_config(config, tokenizer.vocab_size), source)
    workdir.mkdir(parents=True)
    write_atomically(workdir / TOKENIZER, tokenizer_bytes)
    manager.save_params(workdir, params, imported_from=str(source))
    save_config(config, workdir)  # last: it makes the folder a workdir
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the folder of a model.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: give the folder of a model.")
    return content


def _tokenizer(source: Path) -> bytes:
    """Returns the content of the workdir's tokenizer.model."""
    for name in (TOKENIZER, "tokenizer.json"):  # gptjax.export writes both: ours has precedence
        if (source / name).is_file():
            return (source / name).read_bytes()
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (source / vocab).is_file() and (source / merges).is_file():
            lines = (source / merges).read_text("utf-8").split("\n")
            return gpt2_tokenizer.make_json(_read_json(source / vocab), lines)
    raise UserError(f"{source} has no tokenizer.json, and no vocab.json and merges.txt.")


def _tensors(path: Path) -> dict[str, Any]:
    with imports_of_extra("export"):
        import safetensors
        from safetensors.flax import load_file  # the NumPy one cannot read bfloat16
    if not path.is_file():
        raise UserError(f"{path} is missing. (Other formats run code when read: convert them.)")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): download it again.") from error


def _check_shapes(params: Params, model_config: GPTConfig, source: Path) -> None:
    expected = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    problems = [
        f"{jax.tree_util.keystr(path)} is {array.shape}, not {shape.shape}"
        for (path, array), shape in pairs
        if array.shape != shape.shape
    ]
    if problems:
        raise UserError(f"{source}: config.json and weights disagree: {'; '.join(problems)}")
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(params)):
        raise UserError(f"{source}: some weights are not finite")


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
    cli.run_argv(_main)
