"""Exports a run's model for Hugging Face's `transformers`, or for llama.cpp.

python -m gptjax.export --workdir=runs/quickstart --format=hf --out=exported
python -m gptjax.export --workdir=runs/quickstart --format=gguf --out=quickstart.gguf
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from configs.extras import imports_of_extra
from data_pipeline.files import fsync, write_atomically
from data_pipeline.token_store import TOKENIZER
from gptjax.compat import gguf_file, hf_tokenizer, hf_weights
from gptjax.inference import load_run


def export_hf(workdir: Path, out: Path) -> None:
    """Writes the best checkpoint of a run as a folder for Hugging Face's Auto classes.

    The folder also holds our own tokenizer.model, so that `gptjax.import_hf` can import it.

    Raises:
        UserError: `out` exists, the workdir has no checkpoint, or a package is missing.
    """
    with imports_of_extra("export"):
        from safetensors.numpy import save
    with _new(out) as folder:
        _, config, params, tokenizer, _ = load_run(workdir)
        folder.mkdir()
        tensors = hf_weights.to_hf(config, params, tokenizer.vocab_size)
        weights = save(tensors, metadata={"format": "pt"})
        write_atomically(folder / "model.safetensors", weights)
        for name, content in (
            ("config", hf_weights.hf_config(config, tokenizer)),
            ("tokenizer", hf_tokenizer.tokenizer_json(tokenizer)),
            ("tokenizer_config", hf_tokenizer.tokenizer_config(tokenizer, config.block_size)),
        ):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            write_atomically(folder / f"{name}.json", text.encode())
        if tokenizer.byte_level is None:
            write_atomically(folder / TOKENIZER, (workdir / TOKENIZER).read_bytes())


def export_gguf(workdir: Path, out: Path) -> None:
    """Writes the file `out` for llama.cpp; errors are those of `export_hf`."""
    with _new(out) as path:
        _, config, params, tokenizer, _ = load_run(workdir)
        gguf_file.write(path, config, params, tokenizer, name=workdir.name)


@contextlib.contextmanager
def _new(out: Path) -> Iterator[Path]:
    """Yields a path in a temporary folder beside `out`, which it becomes on success."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another --out. Nothing was changed.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        path = Path(folder, out.name)
        yield path
        fsync(path)
        path.rename(out)
    fsync(out.parent)


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    export = export_hf if values.format == "hf" else export_gguf
    export(Path(values.workdir), Path(values.out))
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_enum("format", "hf", ["hf", "gguf"], "hf: a folder; gguf: a file for llama.cpp.")
    flags.DEFINE_string("out", None, "Path to write; must not exist yet.", required=True)
    cli.run_argv(_main, first="workdir")
