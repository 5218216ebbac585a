"""Checking and reading parquet files: good ones, and each kind of bad one."""

import contextlib
import itertools
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import DataError
from data_pipeline.sources import parquet, parquet_footer
from data_pipeline.sources.documents import Columns

N = 250  # documents, in row groups of 100


def table(n: int = N, **columns: pa.Array) -> pa.Table:
    """A table like FineWeb's; `columns` replace or add some, None removes one."""
    data = {
        "text": pa.array(
            [f"document {i}\nwith äöü, 語 and {'words ' * (i % 7)}" for i in range(n)]
        ),
        "id": pa.array([f"<urn:uuid:{i}>" for i in range(n)]),
        "url": pa.array(["https://example.org"] * n),
        "token_count": pa.array(range(n), pa.int64()),
    }
    return pa.table({k: v for k, v in (data | columns).items() if v is not None})


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "000_00000.parquet"
    pq.write_table(table(), path, row_group_size=100)
    return path


def read(path, skipped=None):
    info = parquet_footer.inspect(path)
    groups = (parquet.read_row_group(path, i, skipped=skipped) for i in range(info.n_row_groups))
    return [document for group in groups for document in group]


def damage(path, offset, data):
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(data)


def test_inspect_and_read_agree_with_pyarrow(shard):
    info = parquet_footer.inspect(shard)
    assert (info.n_documents, info.row_group_sizes) == (N, (100, 100, 50))
    assert info.size_bytes == shard.stat().st_size
    expected = pq.read_table(shard).to_pylist()
    documents = read(shard)
    assert [(d.id, d.text, d.token_count) for d in documents] == [
        (r["id"], r["text"], r["token_count"]) for r in expected
    ]
    assert [d.row for d in documents] == [*range(100), *range(100), *range(50)]


def test_text_bytes_estimate_the_text(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([f"{i} " * 500 for i in range(N)])
    pq.write_table(table(text=texts), path, row_group_size=100)
    true = sum(len(t.as_py()) for t in texts)
    assert true <= sum(parquet_footer.inspect(path).text_bytes) < 1.1 * true


def test_identity_follows_the_content(shard, tmp_path):
    info = parquet_footer.inspect(shard)
    copy = tmp_path / "elsewhere" / shard.name
    copy.parent.mkdir()
    copy.write_bytes(shard.read_bytes())
    assert parquet_footer.inspect(copy).identity() == info.identity()
    pq.write_table(table(token_count=pa.array([7] * N)), shard, row_group_size=100)
    assert parquet_footer.inspect(shard).identity() != info.identity()
    assert read(shard)[0].token_count == 7  # the old footer is not used again


@pytest.mark.parametrize("name", ["text", "id"])
@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_other_string_types_read_the_same(tmp_path, name, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(table(**{name: table()[name].combine_chunks().cast(kind)}), path)
    assert [(d.id, d.text) for d in read(path)] == [
        (r["id"], r["text"]) for r in table().to_pylist()
    ]


def test_extra_and_reordered_columns_do_not_matter(tmp_path, shard):
    path = tmp_path / "a.parquet"
    extra = table(nested=pa.array([{"text": 1}] * N))
    pq.write_table(extra.select(["nested", "token_count", "url", "id", "text"]), path)
    assert [d[1:] for d in read(path)] == [d[1:] for d in read(shard)]
    assert sum(parquet_footer.inspect(path).text_bytes) > 5000  # of `text`, not of `nested.text`


@pytest.mark.parametrize("token_count", [None, pa.array(["many"] * N)])
def test_token_count_is_optional(tmp_path, token_count):
    path = tmp_path / "a.parquet"
    pq.write_table(table(token_count=token_count), path)
    assert {d.token_count for d in read(path)} == {None}


def test_unusable_rows_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([b"good", None, b"", b"bad \xff", b"\xc3", b" ", b"end"]).view(pa.string())
    ids = pa.array(["0", "1", "2", "3", "4", "5", None])
    pq.write_table(table(7, text=texts, id=ids), path)
    skipped = Counter()
    documents = read(path, skipped)
    assert [(d.row, d.text) for d in documents] == [(0, "good"), (5, " ")]
    assert skipped == {"null_text": 1, "empty_text": 1, "invalid_utf8": 2, "null_id": 1}


@pytest.mark.parametrize("keep", [0, 3, 11, 500, -1, -20])
def test_truncated(shard, keep):
    data = shard.read_bytes()
    shard.write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"truncated|not a parquet file") as e:
        parquet_footer.inspect(shard)
    assert str(shard) in str(e.value) and "Download it again" in str(e.value)


def test_html_page_saved_as_parquet(shard):
    shard.write_bytes(b"<html>404 not found, sorry</html>")
    with pytest.raises(DataError, match="not a parquet file.*<htm.*error page"):
        parquet_footer.inspect(shard)


def test_damaged_footer(shard):
    size = shard.stat().st_size
    footer = int.from_bytes(shard.read_bytes()[-8:-4], "little")
    damage(shard, size - 8 - footer, b"\xff" * 40)
    with pytest.raises(DataError, match="footer is damaged") as e:
        parquet_footer.inspect(shard)
    assert str(shard) in str(e.value)
    damage(shard, size - 8, (2**31 - 1).to_bytes(4, "little"))
    with pytest.raises(DataError, match="footer is damaged: it claims 2,147,483,647 bytes"):
        parquet_footer.inspect(shard)


def test_middle_of_the_file_is_missing(shard):
    data = shard.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    shard.write_bytes(data[:100] + data[-footer:])
    with pytest.raises(DataError, match="row group 1, column 'text': should end at byte"):
        parquet_footer.inspect(shard)


@pytest.mark.parametrize("name", ["text", "id"])
@pytest.mark.parametrize("data", [b"\0" * 16, b"\xff" * 16], ids=["zeros", "ones"])
def test_damaged_page_names_file_row_group_and_column(tmp_path, name, data):
    path = tmp_path / "a.parquet"
    texts = pa.array([f"{i} unlike the others {i * i}" * 9 for i in range(N)])
    pq.write_table(table(text=texts), path, row_group_size=100, use_dictionary=False)
    column = {"text": 0, "id": 1}[name]
    damage(path, pq.ParquetFile(path).metadata.row_group(1).column(column).data_page_offset, data)
    parquet_footer.inspect(path)  # the footer is whole
    assert len(list(parquet.read_row_group(path, 0))) == 100
    with pytest.raises(DataError, match=f"row group 1, column '{name}'") as e:
        list(parquet.read_row_group(path, 1))
    assert str(path) in str(e.value)
    assert len(list(parquet.read_row_group(path, 2))) == 50


def test_documents_before_a_damaged_page_are_yielded(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} {'x' * 99}" for i in range(N)]
    pq.write_table(
        table(text=pa.array(texts)),
        path,
        use_dictionary=False,
        compression="none",
        data_page_size=2000,
        write_batch_size=10,
        write_page_checksum=True,
    )
    damage(path, path.read_bytes().index(b"205 xxx"), b"9")  # one letter: only the CRC can tell
    texts_before = []
    with pytest.raises(DataError, match=r"row group 0, column 'text'.*after document \d+ .*CRC"):
        for document in parquet.read_row_group(path, 0):
            texts_before.append(document.text)
    n = 0
    with contextlib.suppress(OSError, pa.ArrowInvalid):
        for _ in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(1):
            n += 1
    assert texts_before == texts[:n] and 100 < n <= 200 and n % parquet.BATCH

    skipped, damaged = Counter(), []
    kept = list(parquet.read_row_group(path, 0, skipped=skipped, damaged=damaged))
    assert [document.text for document in kept] == texts_before and not skipped
    assert [d[:3] for d in damaged] == [("row group 0, column 'text'", n, N - n)]
    assert "CRC" in damaged[0].reason


@pytest.mark.parametrize("checksum", [True, False])
def test_flipped_bytes_are_reported_and_never_crash(tmp_path, checksum):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=100, write_page_checksum=checksum)
    good, expected = path.read_bytes(), [(d.id, d.text) for d in read(path)]
    first_of_footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    rng = random.Random(0)
    n_damaged = 0
    for _ in range(60):
        data = bytearray(good)
        data[rng.randrange(4, first_of_footer)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        damaged = []
        kept = [
            (d.id, d.text)
            for i in range(3)
            for d in parquet.read_row_group(path, i, damaged=damaged)
        ]
        if not damaged:
            assert read(path)  # the other mode agrees
        else:
            n_damaged += 1
            with pytest.raises(DataError, match=damaged[0].place):
                read(path)
            assert len(kept) + sum(d.documents_lost for d in damaged) == N
        if checksum:  # of columns that are read: others may be damaged
            assert set(kept) <= set(expected) and (damaged or kept == expected)
    assert n_damaged > 20


def test_errors_of_the_machine_are_not_damage(shard, monkeypatch):
    """A disk that fails, or too little memory, must never be a reason to leave documents out."""
    for error, words in (
        (OSError(5, "Input/output error"), "Input/output"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "malloc"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(parquet, "_iterate", fail)
        damaged = []
        with pytest.raises(DataError, match=f"row group 1 cannot be read.*{words}.*the disk"):
            list(parquet.read_row_group(shard, 1, damaged=damaged))
        assert not damaged


def test_a_row_group_that_ends_early_is_damaged(shard, monkeypatch):
    iterate = parquet._iterate
    monkeypatch.setattr(
        parquet,
        "_iterate",
        lambda *arguments: itertools.islice(iterate(*arguments), 60 // parquet.BATCH),
    )
    with pytest.raises(DataError, match=r"after document 48 .*\(100 documents\).*ends after 48"):
        list(parquet.read_row_group(shard, 0))
    damaged = []
    assert len(list(parquet.read_row_group(shard, 0, damaged=damaged))) == 48
    assert damaged[0][:3] == ("row group 0, column 'id'", 48, 52)


def test_one_document_is_decoded_at_a_time(tmp_path):
    """Memory for the largest document, not for its neighbours: here 40, in one page."""
    path = tmp_path / "a.parquet"
    texts = pa.array([f"{i}" + "x" * 2_000_000 for i in range(40)])
    pq.write_table(table(40, text=texts), path, use_dictionary=False, data_page_size=10**9)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in parquet.read_row_group(path, 0)]
    assert max(held) < 80e6 + 40e6  # the page, and a few documents


@pytest.mark.parametrize("name", ["text", "id"])
def test_missing_column(tmp_path, name):
    path = tmp_path / "a.parquet"
    pq.write_table(table(**{name: None}), path)
    message = f"0 columns named '{name}'.*It has: .*url: string.*data.{name}_column"
    with pytest.raises(DataError, match=message):
        parquet_footer.inspect(path, Columns("text", "id"))


@pytest.mark.parametrize("name", ["text", "id"])
@pytest.mark.parametrize("values", [list(range(N)), [b"x"] * N, [["x"]] * N, [None] * N])
def test_column_of_another_type(tmp_path, name, values):
    path = tmp_path / "a.parquet"
    array = pa.array(values)
    pq.write_table(table(**{name: array}), path)
    kind = str(array.type).partition("<")[0]
    with pytest.raises(DataError, match=f"column '{name}' is of type {kind}.*string is needed"):
        parquet_footer.inspect(path, Columns("text", "id"))


@pytest.mark.parametrize("ids", [None, pa.array(range(N))])
def test_rows_without_an_id_are_named_by_file_and_number(tmp_path, ids):
    path = tmp_path / "a.parquet"
    pq.write_table(table(id=ids), path, row_group_size=100)
    for columns in (Columns(), Columns(id="")):
        (file,) = parquet.open_all({"b/a.parquet": path}, columns)
        found = [document for chunk in file.chunks for document in chunk.read()]
        assert [d.id for d in found] == [f"b/a.parquet:{i}" for i in range(N)]
        assert [d.text for d in found] == table()["text"].to_pylist()


def test_other_columns_can_be_the_text_and_the_id(tmp_path, shard):
    path = tmp_path / "a.parquet"
    pq.write_table(table().rename_columns({"id": "name", "text": "id", "url": "text"}), path)
    (file,) = parquet.open_all({"a.parquet": path}, Columns("id", "name"))
    found = [document for chunk in file.chunks for document in chunk.read()]
    assert [(d.id, d.text) for d in found] == [(d.id, d.text) for d in read(shard)]
    assert {d.id for d in parquet.read_row_group(path, 0, ("name", "name"))} == {
        d.text for d in parquet.read_row_group(path, 0, ("name", ""))
    }


def test_zero_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(0), path)
    with pytest.raises(DataError, match="zero rows"):
        parquet_footer.inspect(path)
