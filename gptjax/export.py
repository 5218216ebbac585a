"""Exports a run's model for Hugging Face's `transformers`, or for llama.cpp.

gptjax export runs/quickstart --out=exported
gptjax export runs/quickstart --out=quickstart.gguf --format=gguf
gptjax export runs/quickstart --out=exported --push_to=user/name
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from data_pipeline.files import fsync, write_atomically
from data_pipeline.token_store import TOKENIZER
from gptjax.compat import gguf_file, hf_tokenizer, hf_weights, hub, model_card, safetensors_file
from gptjax.inference import load_run

DTYPES = ("float32", "bfloat16")  # of the exported weights


def export_hf(workdir: Path, out: Path, dtype: str = DTYPES[0]) -> None:
    """Writes the best checkpoint of a run as a folder for Hugging Face's Auto classes.

    The folder also holds our own tokenizer.model, so that `gptjax.import_hf` can import it, and a
    model card.

    Raises:
        UserError: `out` exists, the workdir has no checkpoint, or a package is missing; nothing is
            left.
    """
    with _new(out) as folder:
        run = load_run(workdir)
        tokenizer, config = run.tokenizer, run.model_config
        folder.mkdir()
        tensors = hf_weights.to_hf(config, run.params, tokenizer.vocab_size)
        safetensors_file.write(folder / "model.safetensors", tensors, dtype)
        for name, content in (
            ("config", {**hf_weights.hf_config(config, tokenizer), "dtype": dtype}),
            ("generation_config", hf_tokenizer.generation_config(tokenizer)),
            ("tokenizer", hf_tokenizer.tokenizer_json(tokenizer)),
            ("tokenizer_config", hf_tokenizer.tokenizer_config(tokenizer, config.block_size)),
        ):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            write_atomically(folder / f"{name}.json", text.encode())
        if tokenizer.byte_level is None:
            write_atomically(folder / TOKENIZER, (workdir / TOKENIZER).read_bytes())
        write_atomically(folder / "README.md", model_card.card(run, workdir, dtype).encode())


def export_gguf(workdir: Path, out: Path, dtype: str = DTYPES[0]) -> None:
    """Writes the file `out` for llama.cpp; errors are those of `export_hf`."""
    with _new(out) as path:
        run = load_run(workdir)
        model = run.model_config, run.params, run.tokenizer
        gguf_file.write(path, *model, name=workdir.name, dtype=dtype)


@contextlib.contextmanager
def _new(out: Path) -> Iterator[Path]:
    """Yields a path in a temporary folder near `out`, which it becomes on success."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another --out. Nothing was changed.")
    existing = next(parent for parent in out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=existing) as folder:
        path = Path(folder, out.name)
        yield path
        fsync(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        path.rename(out)
    fsync(out.parent)


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    if values.push_to:
        if values.format != "hf":
            raise UserError("--push_to is for --format=hf.")
        hub.check_name(values.push_to)
    export = export_hf if values.format == "hf" else export_gguf
    export(Path(values.workdir), Path(values.out), values.dtype)
    print(f"wrote {values.out}")
    if values.push_to:
        print(f"pushed to {hub.push(Path(values.out), values.push_to, private=values.private)}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_enum("format", "hf", ["hf", "gguf"], "hf: a folder; gguf: a file for llama.cpp.")
    flags.DEFINE_string("out", None, "Path to write; must not exist yet.", required=True)
    flags.DEFINE_enum("dtype", DTYPES[0], DTYPES, "Of the weights; bfloat16 halves the size.")
    flags.DEFINE_string(
        "push_to", "", "USER/NAME: uploads the folder to the Hugging Face Hub, by the network."
    )
    flags.DEFINE_bool("private", True, "Whether a repository that --push_to creates is private.")
    cli.run_argv(_main, first="workdir")
