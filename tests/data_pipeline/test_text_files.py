"""JSON lines and text, plain and compressed: against naive readers, and each kind of bad file."""

import gzip
import itertools
import json
import os
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from configs.errors import DataError
from data_pipeline.sources import documents, formats, inspection, records, text_files
from data_pipeline.sources.find import open_source

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
ENDS = list(COMPRESS)
rng = random.Random(0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks and chunks so small that records cross them."""
    monkeypatch.setattr(records, "BLOCK", 64)
    monkeypatch.setattr(records, "_PIECE", 16)
    monkeypatch.setattr(inspection, "CHUNK_BYTES", 100)
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 100)
    for module in (records, formats):
        monkeypatch.setattr(module, "MAX_DOCUMENT", 10_000)


@pytest.fixture
def source(tmp_path):
    """Writes files, and returns the source: source({name: bytes}, **keys of config.data)."""

    def write(files, **keys):
        folder = tmp_path / "source"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(COMPRESS.get(os.path.splitext(name)[1], COMPRESS[""])(data))
        data = base.get_config().data
        data.update({"source": str(folder), "cache_dir": str(tmp_path / "cache"), **keys})
        return open_source(data)

    return write


def read(files, skipped=None, damaged=None):
    """(id, text) of all documents; their rows are checked."""
    found = []
    for file in files:
        row = 0
        for chunk in file.chunks:
            assert chunk.first_row == row
            numbers = []
            for document in chunk.read(skipped=skipped, damaged=damaged):
                numbers.append(document.row)
                found.append((document.id, document.text))
            assert numbers == sorted(set(numbers)) and all(n < chunk.rows for n in numbers)
            row += chunk.rows
        assert row == file.n_documents
    return found


def some_rows(n=60):
    words = ["naïve", "\n", '"', "漢字", "x" * 40, "\\", "{}", "\u2028", " "]
    return [
        {"text": "".join(rng.choices(words, k=rng.randint(1, 9))), "id": f"id-{i}", "n": [i, {}]}
        for i in range(n)
    ]


# --- JSON lines ---


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("last", [b"\n", b""])
def test_json_lines_are_what_json_reads(source, end, last):
    rows = some_rows()
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0).encode() for i, row in enumerate(rows)]
    (file,) = source({f"a.jsonl{end}": b"\n".join(lines) + last})
    assert read([file]) == [(row["id"], row["text"]) for row in rows]
    assert len(file.chunks) > 9 and file.n_documents == len(rows)
    assert file.text_bytes == len(b"\n".join(lines) + last)
    for chunk in file.chunks[::5]:  # each can be read by itself
        mine = rows[chunk.first_row : chunk.first_row + chunk.rows]
        assert [d.text for d in chunk.read()] == [row["text"] for row in mine]


@pytest.mark.parametrize("end", ENDS[1:])
def test_a_compressed_file_has_few_chunks(source, end):
    (file,) = source({f"a.jsonl{end}": b"".join(b'{"text": "%d"}\n' % i for i in range(5000))})
    assert 10 < len(file.chunks) <= 16
    assert [text for _, text in read([file])] == [str(i) for i in range(5000)]


def test_several_members_are_one_file(source, tmp_path):
    for end in ENDS[1:]:
        lines = [COMPRESS[end](b'{"text": "%d"}\n' % i) for i in range(50)]
        source({f"a.jsonl{end}": b""})
        (tmp_path / "source" / f"a.jsonl{end}").write_bytes(b"".join(lines))
    assert [text for _, text in read(source({}))] == [str(i) for i in range(50)] * 2


IDS = [{"id": "x"}, {"id": 7}, {}, {"id": 1.5}, {"id": None}, {"id": True}, {"id": ""}]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("auto", ["x", "7", *(f"a.jsonl:{i}" for i in range(2, 7))]),
        ("", [f"a.jsonl:{i}" for i in range(7)]),
        ("name", list("ABCDEFG")),
    ],
)
def test_ids_of_json_lines(source, key, expected):
    rows = [{"text": "t", "name": name, **ids} for name, ids in zip("ABCDEFG", IDS, strict=True)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    assert [name for name, _ in read(source({"a.jsonl": data}, id_column=key))] == expected


def test_rows_without_a_text_are_skipped_and_counted(source):
    lines = [{"text": "a", "id": "x"}, {"text": None, "id": "x"}, {"text": "", "id": "x"}]
    lines += [{"text": "b", "id": None}, {"text": "\ud800", "id": "x"}, {"text": "c", "id": "y"}]
    data = "\n".join(map(json.dumps, lines)) + "\n\n  \n"
    skipped = Counter()
    assert read(source({"a.jsonl": data.encode()}, id_column="id"), skipped) == [
        *(("x", "a"), ("y", "c"))
    ]
    assert skipped == {"null_text": 1, "empty_text": 3, "null_id": 1, "invalid_utf8": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_byte_order_mark_is_no_text(source, name):
    data = formats.BOM + b'{"text": "a"}\n' + formats.BOM + b"b"
    files = source({name: data[: 17 if name == "a.jsonl" else None]}, separator="")
    (text,) = [text for _, text in read(files)]
    assert text == ("a" if name == "a.jsonl" else '{"text": "a"}\n\ufeffb')


# --- text ---


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("separator", ["\n", "\n\n", "<|endoftext|>", "aa", "é漢"])
def test_text_is_split_as_str_does(source, end, separator):
    text = "".join(rng.choices(["a", "\n", "é漢", "<|endoftext|>", "x" * 30, "é"], k=900))
    (file,) = source({f"t.txt{end}": text.encode()}, separator=separator)
    expected = text.split(separator)
    named = [(f"t.txt{end}:{i}", text) for i, text in enumerate(expected) if text]
    assert read([file]) == named
    assert file.n_documents == len(expected) - (not expected[-1])


def test_a_backslash_and_an_n_are_an_end_of_line(source):
    (file,) = source({"t.txt": b"a\n\nb\nc"}, separator=r"\n\n")
    assert read([file]) == [("t.txt:0", "a"), ("t.txt:1", "b\nc")]


def test_small_texts_share_a_file_of_the_source(source, monkeypatch):
    texts = {f"{i:03d}.txt{rng.choice(ENDS)}": f"{i} " * rng.randint(0, 40) for i in range(40)}
    data = {name: text.encode() for name, text in texts.items()}
    (file,) = source(data)
    assert file.name == f"{min(texts)}+39" and file.n_documents == 40 and len(file.chunks) > 5
    expected = [(f"{name}:0", text) for name, text in sorted(texts.items()) if text]
    assert read([file]) == expected
    monkeypatch.setattr(text_files, "GROUP_BYTES", 300)
    files = source({})
    assert len(files) > 1 and read(files) == expected
    assert len({file.identity["sha256"] for file in files}) == len(files)


def test_kinds_can_be_mixed(source, tmp_path):
    pq.write_table(pa.table({"text": ["p"], "id": ["0"]}), tmp_path / "z.parquet")
    data = {"a.txt": b"t", "b.json": b'{"text":"j"}'}
    data["z.parquet"] = (tmp_path / "z.parquet").read_bytes()
    files = source(data, source=f"{tmp_path}/source/*")
    assert [file.name for file in files] == ["z.parquet", "b.json", "a.txt"]
    assert [text for _, text in read(files)] == ["p", "j", "t"]


# --- what is wrong ---

LINES = [b'{"text": "%d", "id": "%d"}' % (i, i) for i in range(20)]
LONG = b'{"text": "' + b"x" * 20_000 + b'"}'
BROKEN = {
    "cut": (b'{"text": "9", "i', "it is no JSON"),
    "two in one": (b'{"text": "9" {"text": "9"}', "it is no JSON .*delimiter"),
    "a number": (b"9", "it is no JSON object"),
    "a list": (b'["text"]', "it is no JSON object"),
    "without the key": (b'{"texts": "9", "url": ""}', "it has no 'text'.*it has: texts, url"),
    "a text of another type": (b'{"text": ["9"]}', "the value of 'text' is no string"),
    "deep": (b'{"text":' + b"[" * 2000 + b"]" * 2000 + b"}", "it is no JSON .it nests too deeply"),
    "long": (LONG, "it has over .* bytes"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_stops_or_is_left_out(source, name, end):
    line, reason = BROKEN[name]
    data = {f"a.jsonl{end}": b"\n".join([*LINES[:9], line, *LINES[10:14], line, *LINES[15:]])}
    with pytest.raises(DataError, match=rf"a.jsonl{end}: line 10: {reason}.*keep_before"):
        read(source(data))
    damaged, skipped = [], Counter()
    found = read(source(data, on_corrupt="keep_before"), skipped, damaged)
    assert found == [(str(i), str(i)) for i in range(20) if i not in (9, 14)] and not skipped
    assert sum(d.documents_lost for d in damaged) == 2
    assert damaged[0].place.startswith("line 10") and re.match(reason, damaged[0].reason)


def test_a_key_that_is_nowhere_is_an_error_at_once(source):
    data = {"a.jsonl": b'{"content": "a", "id": 1}\n' * 9}
    for on_corrupt in ("stop", "keep_before"):
        message = r"a.jsonl: line 1: it has no 'text', which data.text_column names; .*content, id"
        with pytest.raises(DataError, match=message):
            source(data, on_corrupt=on_corrupt)
        with pytest.raises(DataError, match="no 'name', which data.id_column names"):
            source(data, on_corrupt=on_corrupt, text_column="content", id_column="name")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("name", "separator", "place"),
    [
        ("a.jsonl", "", "line 2: byte 12"),
        ("a.txt", "\n", "document 2: byte 12"),
        ("a.txt", "", "document 1: byte 25"),
    ],
)
def test_another_encoding_is_refused_or_counted(source, end, name, separator, place):
    data = b'{"text":"a"}\n{"text": "b\xe4"}\n{"text":"c"}'
    with pytest.raises(DataError, match=f"{name}{end}: {place} is no UTF-8.*iconv.*keep_before"):
        source({name + end: data}, separator=separator)
    skipped, damaged = Counter(), []
    files = source({}, separator=separator, on_corrupt="keep_before")
    assert len(read(files, skipped, damaged)) == (2 if name == "a.jsonl" or separator else 0)
    assert skipped == {"invalid_utf8": 1} and not damaged


@pytest.mark.parametrize("end", ENDS[1:])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_compressed_file_that_ends_early(source, tmp_path, end, keep):
    rows = [{"text": f"{rng.getrandbits(999):x}", "id": str(i)} for i in range(1500)]
    lines = [json.dumps(row).encode() for row in rows]
    source({f"a.jsonl{end}": b"\n".join(lines)})
    path = tmp_path / "source" / f"a.jsonl{end}"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"a.jsonl{end}: after line [\d,]+: the compressed data"):
        source({})
    damaged = []
    found = read(source({}, on_corrupt="keep_before"), damaged=damaged)
    n = len(found)
    assert found == [(row["id"], row["text"]) for row in rows[:n]] and n > 200
    assert [d.documents_lost for d in damaged] == [0] and f"after line {n:,}" in damaged[0].reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
def test_what_is_not_compressed_at_all(source, tmp_path, name):
    source({name: b""})
    (tmp_path / "source" / name).write_bytes(b'{"text": "plain"}')
    with pytest.raises(DataError, match=f"{name}: .*compressed data is damaged.*incorrect header"):
        source({})
    damaged = []
    assert not read(source({}, on_corrupt="keep_before"), damaged=damaged)
    assert len(damaged) == 1 and "incorrect header" in damaged[0].reason


def test_memory_is_bounded_whatever_the_length_of_a_record(monkeypatch):
    """A record that is too long is dropped while it is read; the next one is whole."""
    held = []
    monkeypatch.setattr(records, "MAX_DOCUMENT", 1000)

    def blocks():
        for block in [b"a;", *[b"x" * 100] * 500, b"y;", b";b;c;"]:
            held.append(sum(len(x) for x in gc_locals()))
            yield block

    def gc_locals():
        frame = generator.gi_frame
        return [frame.f_locals.get("pending", b"")] if frame else []

    generator = records.split(blocks(), b";;")
    assert list(generator) == [(None, 50_005), (b"b;c;", 4)]
    assert max(held) <= 1100


def test_a_file_that_changes(source, tmp_path):
    data = {"a.jsonl": b"\n".join(LINES), "b.txt": b"text", "c.txt": b"more"}
    line_file, texts = source(data, source=f"{tmp_path}/source/*")
    assert line_file.changed() is None and texts.changed() is None
    path = tmp_path / "source" / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"9", b"8"))
    os.utime(path, ns=(0, 0))  # of the same size
    assert line_file.changed() == path
    (tmp_path / "source" / "c.txt").unlink()
    assert texts.changed().name == "c.txt"
    path.write_bytes(b"\n".join(LINES[:5]))
    with pytest.raises(DataError, match="a.jsonl: the file changed while it was read"):
        read([line_file])


def test_a_file_that_grows_while_it_is_looked_through(source, monkeypatch, tmp_path):
    def grow(blocks, separator, real=records.split):
        yield from real(blocks, separator)
        with (tmp_path / "source" / "a.jsonl").open("ab") as f:
            f.write(LINES[0])

    monkeypatch.setattr(inspection, "split", grow)
    with pytest.raises(DataError, match=r"a.jsonl: the file changed.*Run again"):
        source({"a.jsonl": LINES[0]})


# --- what a look through a file has found is kept ---


def test_files_are_looked_through_once(source, monkeypatch, tmp_path):
    data = {"a.jsonl": b"\n".join(LINES), "b.jsonl.gz": LINES[0]}
    expected = source(data)
    looked = []
    inspect = inspection.inspect

    def counted(state, *arguments):
        looked.append(state.path.name)
        return inspect(state, *arguments)

    monkeypatch.setattr(inspection, "inspect", counted)
    assert source({}) == expected and not looked
    for kept in (tmp_path / "cache" / "inspected").iterdir():
        cut = kept.read_text()[:-9]
        for damage in ("", "[]", '{"files": [{"sha256": 1}]}', '{"files": []}', cut):
            kept.write_text(damage)
            assert source({}) == expected
    assert len(looked) == 10
    source({}, text_column="id")
    source({"a.jsonl": b"\n".join(LINES[1:])})
    assert looked[10:] == ["a.jsonl", "b.jsonl.gz", "a.jsonl"]


def test_identity_follows_name_and_content(source, tmp_path):
    def identity(name, data):
        (file,) = source({name: data}, source=str(tmp_path / "source" / name))
        return file.identity

    first = identity("a.jsonl", LINES[0])
    assert first == {
        "file": "a.jsonl",
        "size_bytes": len(LINES[0]),
        "documents": 1,
        "sha256": first["sha256"],
    }
    files = itertools.product(["a.jsonl", "b.jsonl", "a.txt"], LINES[:2])
    assert len({json.dumps(identity(*file)) for file in files}) == 6
    assert identity("a.jsonl", LINES[0]) == first


def test_limits_are_those_of_parquet():
    assert documents.MAX_DOCUMENT == 1 << 27 and text_files.GROUP_FILES <= documents.MAX_ROWS
