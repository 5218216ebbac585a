"""Parquet files on which pyarrow ends the process, or whose sizes it believes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from configs.errors import DataError
from data_pipeline import child
from data_pipeline.sources import parquet, parquet_footer


class Keys(pe.KmsClient):
    """Keeps keys as hexadecimal digits."""

    def __init__(self, _):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key, name):
        return key.hex().encode()

    def unwrap_key(self, key, name):
        return bytes.fromhex(key.decode())


def encrypt(path, *, plaintext_footer):
    settings = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plaintext_footer
    )
    factory = pe.CryptoFactory(Keys)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    table = pa.table({"text": ["a b"] * 9, "id": ["x"] * 9})
    pq.write_table(table, path, encryption_properties=properties)


def test_an_encrypted_column_is_refused_where_pyarrow_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_footer, "child", child)
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": ["a b"], "id": ["x"]}), good)
    encrypt(bad, plaintext_footer=True)
    with pytest.raises(DataError, match=r"b\.parquet: .*pyarrow crashes.*encrypted"):
        parquet_footer.inspect_all([good, bad])
    encrypt(bad, plaintext_footer=False)
    with pytest.raises(DataError, match="not a parquet file"):
        parquet_footer.inspect(bad)


def test_a_footer_is_read_once_for_each_content(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(parquet_footer, "_in_child", lambda f: read.append(f) or real(f))
    real = parquet_footer._read_footers
    monkeypatch.setattr(parquet_footer, "_seen", {})
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path in (a, b):
        pq.write_table(pa.table({"text": ["a b"], "id": ["x"]}), path)
    first, second = parquet_footer.inspect_all([a, b])
    assert [len(footers) for footers in read] == [1] and (first.path, second.path) == (a, b)
    pq.write_table(pa.table({"text": ["a b"] * 2, "id": ["x"] * 2}), b)
    assert parquet_footer.inspect(b).n_documents == 2
    assert parquet_footer.inspect(a) == first


def test_a_long_value_of_a_dictionary_is_not_copied_for_each_row(tmp_path):
    path = tmp_path / "a.parquet"
    values = pa.array(["x" * 5_000_000, "y" * 5_000_000])
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, None] * 16), values)
    pq.write_table(pa.table({"text": texts, "id": ["x"] * 64}), path, compression="zstd")
    before = pa.total_allocated_bytes()
    sizes, held = [], 0
    for document in parquet.read_row_group(path, 0):
        sizes.append(len(document.utf8))
        held = max(held, pa.total_allocated_bytes() - before)
    assert sizes == [5_000_000] * 48
    assert held < 60e6  # 240 MB of text, in a dictionary of 10 MB


def claim(path, rows):
    """Changes the number of rows in a footer of one row group, where it stands three times."""
    data = path.read_bytes()
    old, new = bytes([0x16, 2 * 9]), bytes([0x16, *_varint(2 * rows)])
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    changed = data[footer:-8].replace(old, new)
    path.write_bytes(data[:footer] + changed + len(changed).to_bytes(4, "little") + b"PAR1")


def _varint(n):
    while n > 127:
        yield n & 127 | 128
        n >>= 7
    yield n


@pytest.mark.parametrize("rows", [10**6, 10**12, 1 << 61])
def test_more_rows_than_a_file_can_hold_are_not_believed(tmp_path, rows):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a b"] * 9, "id": ["x"] * 9}), path)
    claim(path, 9)
    assert parquet_footer.inspect(path).n_documents == 9
    claim(path, rows)
    with pytest.raises(DataError, match="footer is damaged"):
        parquet_footer.inspect(path)


def test_a_text_beyond_all_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 10_000_000], "id": ["x"]}), path, compression="zstd")
    assert parquet_footer.inspect(path).text_bytes[0] > 10_000_000 > 100 * path.stat().st_size
    monkeypatch.setattr(parquet_footer, "MAX_DOCUMENT", 1 << 20)
    monkeypatch.setattr(parquet_footer, "_seen", {})
    with pytest.raises(DataError, match="10,000,0.. bytes in 1 documents, over 1,048,576 each"):
        parquet_footer.inspect(path)
