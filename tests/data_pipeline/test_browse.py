"""The browser shows the rows that the model gets, as plain text or with styles."""

import copy
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs.errors import UserError
from data_pipeline import browse
from data_pipeline.packing import PackedRows

ROOT = Path(__file__).parents[2]


def plain(segments):
    return "".join(segment.text for segment in segments)


def show(config, capsys, **options):
    browse.main(config, **options)
    return capsys.readouterr().out


def rows_of(output):
    """Row headings -> the text below them."""
    parts = re.split(r"^\n?(Row .*)\n", output, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_statistics_and_histogram_count_every_document(debug_config, store, capsys):
    out = show(debug_config, capsys, split="val", rows=0)
    split = store.split("val")
    assert f"{split.n_docs:,} documents, {split.n_tokens:,} tokens" in out
    assert "bytes per token" in out and "50 %:" in out
    assert not rows_of(out)
    bins = re.findall(r"^ *([\d,]+) - ([\d,]+) +([\d,]+) +([\d.]+)%", out, re.MULTILINE)
    lengths = split.doc_lengths
    for low, high, n, share in bins:
        low, high, n = (int(x.replace(",", "")) for x in (low, high, n))
        assert n == ((lengths >= low) & (lengths <= high)).sum()
        assert float(share) == pytest.approx(100 * n / len(lengths), abs=0.051)
    assert sum(int(n.replace(",", "")) for _, _, n, _ in bins) == split.n_docs


@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_those_of_training(debug_config, store, capsys, split):
    out = show(debug_config, capsys, split=split, epoch=1, start=5, rows=4)
    documents = store.split(split)
    packed = PackedRows(
        documents,
        block_size=debug_config.model.block_size,
        seed={"train": debug_config.seed, "val": 0}[split],
        bos_id=1,
        segments=False,
    )
    shown = rows_of(out)
    n = packed.rows_per_epoch
    assert [re.match(r"Row (\d+) of ([\d,]+), epoch 1", h)[1] for h in shown] == list("5678")
    for i, (heading, body) in enumerate(shown.items()):
        g = n + 5 + i
        assert (f"optimizer step {g // 8:,}" in heading) == (split == "train")
        texts = re.split(r"^\[.*\n", body, flags=re.MULTILINE)[1:]
        tokens = packed[g].inputs
        expected = decode(store.tokenizer, tokens)
        assert "".join(texts).replace("\n", "") == expected.replace("\n", "")


def decode(tokenizer, tokens):
    data = b"".join(
        b"<BOS>" if token == tokenizer.bos_id else tokenizer.decode_bytes([token])
        for token in tokens
    )
    return data.decode(errors="backslashreplace")


def test_headings_say_which_tokens_of_which_document(debug_config, store, capsys):
    """Every span is read again, from its heading alone."""
    out = show(debug_config, capsys, rows=300)
    split, block_size = store.split("train"), debug_config.model.block_size
    by_id = {split.doc_id(d): d for d in range(split.n_docs)}
    pattern = r"^\[(\d+):(\d+)\] (\S+), tokens ([\d,]+):([\d,]+) of ([\d,]+)(.*)\n"
    bos = 0
    for body in rows_of(out).values():
        end = 0
        fields = re.split(pattern, body, flags=re.MULTILINE)[1:]
        for k in range(0, len(fields), 8):
            a, b, doc_id, start, stop, length, more, text = fields[k : k + 8]
            a, b, start, stop, length = (
                int(x.replace(",", "")) for x in (a, b, start, stop, length)
            )
            assert a == end and b - a == stop - start
            end = b
            doc = by_id[doc_id]
            assert split.doc_lengths[doc] == length
            assert (start > 0) == ("begins" in more) == (not text.startswith("<BOS>"))
            assert (stop < length) == ("continues" in more)
            bos += start == 0
            tokens = split.read(doc, start, stop)
            want = decode(store.tokenizer, tokens)
            assert text.rstrip("\n") == want.rstrip("\n")
        assert end == block_size
    assert bos > 0


def test_last_row_of_an_epoch_shows_its_padding(store):
    split = store.split("val")
    rows = PackedRows(split, block_size=999, seed=0, bos_id=1, segments=False)
    g = next(g for g in range(rows.rows_per_epoch) if not rows[g].loss_mask.all())
    *_, last = browse.row_text(rows, g, store.tokenizer)
    assert last.text.startswith(f"[{rows[g].loss_mask.sum()}:999] padding")


def test_tokens_and_control_characters_are_made_visible(store):
    text = " the \x1b[2J\r\x9b\u20ac\n\t"
    tokens = np.concatenate([[1], store.tokenizer.encode(text)])
    shown = plain(browse.visible(tokens, store.tokenizer, mark_tokens=True))
    assert shown.count("|") == len(tokens) - 1
    assert shown.startswith("<BOS>| the|")
    assert "\x1b" not in shown and "\\x1b" in shown and "\\x0d" in shown
    assert "\\xe2" in shown  # the bytes of a character that three tokens make up
    unmarked = plain(browse.visible(tokens, store.tokenizer, mark_tokens=False))
    assert unmarked == "<BOS> the \\x1b[2J\\x0d\\x9b\u20ac\n\t"


@pytest.mark.parametrize("width", [20, 60, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_bars_fit_the_width(width, terminal):
    lengths = np.array([1] * 50 + [2] * 49 + [700] * 25 + [50_000_000], np.int32)
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=terminal,
        _environ={"TERM": "xterm"},
        legacy_windows=False,
    )
    console.print(browse.histogram([lengths[:60], lengths[60:]], width), crop=False)
    assert ("\x1b" in file.getvalue()) == terminal
    lines = re.sub("\x1b\\[[\\d;]+m", "", file.getvalue()).splitlines()
    bars = [line.rsplit("%", 1)[1].strip() for line in lines[1:]]
    assert max(len(line.rstrip()) for line in lines) <= max(width, 60)
    assert len(lines) == 1 + 26 and "33,554,432 - 67,108,863" in lines[-1]
    assert len(bars[0]) >= len(bars[1]) > len(bars[9]) > 0
    assert bars[0] != bars[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "--split=test: the splits are train and val"),
        ({"start": 10**9}, r"--start=1000000000: an epoch of 'train' has the rows 0 to [\d,]+"),
        ({"start": -1}, "--start=-1"),
        ({"epoch": -1}, "--epoch=-1"),
        ({"rows": -2}, "--rows=-2"),
    ],
)
def test_missing_splits_epochs_and_rows_are_one_line_errors(debug_config, capsys, options, message):
    with pytest.raises(UserError, match=message) as error:
        browse.main(debug_config, **options)
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().out


def test_rows_end_with_the_epoch(debug_config, store, capsys):
    config = copy.deepcopy(debug_config)
    n = -(-store.split("val").n_tokens // config.model.block_size)
    out = show(config, capsys, split="val", start=n - 2, rows=10)
    assert len(rows_of(out)) == 2


def command(debug_config, *arguments):
    cache_dir = f"--config.data.cache_dir={debug_config.data.cache_dir}"
    program = [sys.executable, "-m", "data_pipeline.browse", "--config=configs/debug.py"]
    return [*program, cache_dir, *arguments]


def test_pipes_get_plain_text_and_may_close(debug_config):
    done = subprocess.run(
        command(debug_config, "--rows=2", "--tokens"), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and len(rows_of(done.stdout)) == 2
    shell = " ".join(command(debug_config, "--rows=5000")) + " | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
    done = subprocess.run(
        command(debug_config, "--split=x"), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip() == "error: --split=x: the splits are train and val."


@pytest.mark.parametrize(
    ("variables", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False)]
)
def test_terminals_get_colours_unless_they_are_dumb(debug_config, variables, coloured):
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONUTF8": "1", **variables}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command(debug_config, "--rows=0"), stdout=child, env=environment, cwd=ROOT
    )
    os.close(child)
    output = b""
    try:
        while chunk := os.read(parent, 1 << 16):
            output += chunk
    except OSError:  # how Linux reports the end of a terminal
        pass
    os.close(parent)
    assert process.wait() == 0
    assert "\u2588".encode() in output
    assert (b"\x1b[36" in output) == (b"\x1b[1m" in output) == coloured


def test_a_split_that_does_not_exist_is_refused_before_anything_is_prepared(debug_config):
    config = copy.deepcopy(debug_config)
    config.data.source = "not there, which would be refused next"
    with pytest.raises(UserError, match="--split=test: the splits are train and val"):
        browse.main(config, split="test")
