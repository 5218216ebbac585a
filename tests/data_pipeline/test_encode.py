"""Parts: the split, and the memory of the largest document. test_token_store.py joins them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_prepare import make_rows, write_shard

from data_pipeline import encode
from data_pipeline.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]


def test_val_share_is_the_fraction():
    share = np.mean([encode.is_val(f"<urn:uuid:{i}>", 0.05) for i in range(20_000)])
    assert abs(share - 0.05) < 5 * (0.05 * 0.95 / 20_000) ** 0.5


def test_a_process_keeps_a_tokenizer_wherever_its_file_is(tmp_path):
    """A task on a cluster has a copy in a folder of its own; the cached words serve it, too."""
    for name, size in (("a", 280), ("b", 279)):
        train_tokenizer(["some words, and a number"], vocab_size=size, path=tmp_path / name)
    (tmp_path / "copy").write_bytes((tmp_path / "a").read_bytes())
    tokenizer = encode.load_tokenizer(tmp_path / "a")
    assert encode.load_tokenizer(tmp_path / "copy") is tokenizer
    assert encode.load_tokenizer(tmp_path / "b").hash != tokenizer.hash


@pytest.mark.slow
def test_a_document_of_50_mb_needs_less_than_400_mb(tmp_path):
    text = "".join(f"{i} is a number, äöü\n" for i in range(1_600_000))
    text += "words come back. " * 800_000 + "😀"
    rows = make_rows(600)
    rows[300] = {"id": "large", "text": text, "token_count": 1}
    write_shard(tmp_path / "a.parquet", rows, 1000)
    del text, rows
    train_tokenizer(["some words, and a number"], vocab_size=280, path=tmp_path / "model")
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from data_pipeline import encode
from data_pipeline.sources import parquet
from data_pipeline.sources.documents import Columns
folder = pathlib.Path({str(tmp_path)!r})
(file,) = parquet.open_all({{"a.parquet": folder / "a.parquet"}}, Columns())
(part,) = encode.plan_parts(file, folder / "0", tokenizer=folder / "model", val_fraction=0.1)
assert encode.encode_part(part) > 50_000_000
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    documents, _ = encode.read_part(next(tmp_path.glob("0-*")))
    assert documents["bytes"].max() >= 50_000_000
    assert int(done.stdout) * 1024 < 400e6
