"""The metrics of runs as CSV and parquet, read again with the standard library and pyarrow."""

import csv
import math

import pyarrow.parquet as pq
import pytest
from report_runs import loss, make_run, run_lines

from configs import debug
from configs.errors import UserError
from gptjax.report import rows, run_history


@pytest.fixture
def runs(tmp_path):
    config = debug.get_config()
    config.optim.learning_rate, config.seed, config.model.bias = 0.5, 2, True
    config.sample.prompts, config.data.source = ("a", "b"), "x, y"
    skipped = {"step": 30, "skipped/documents": ["a"], "skipped/loss": None, "time": 12.5}
    folders = [make_run(tmp_path / "one-s1")]
    folders.append(make_run(tmp_path / "other", [*run_lines()[:3], skipped], config=config))
    return [run_history.read(folder) for folder in folders]


def test_a_row_for_each_line(runs, tmp_path):
    out = tmp_path / "rows.parquet"
    assert rows.write(runs, out) == 13 + 4
    table = pq.read_table(out).to_pylist()
    first = table[0]
    assert (first["run"], first["setting"], first["step"]) == ("one-s1", "one", 10)
    assert first["train/loss"] == loss(10) and first["perf/mfu"] is None
    assert [row["val/loss"] for row in table[:3]] == [None, None, loss(25) + 1]
    last = table[-1]
    assert (last["run"], last["setting"], last["step"], last["time"]) == (
        "other",
        "other",
        30,
        12.5,
    )
    assert last["train/loss"] is None and last["skipped/loss"] is None
    assert "skipped/documents" not in last


def test_the_keys_in_which_runs_differ_are_columns(runs, tmp_path):
    rows.write(runs, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    of_keys = {name: table[name][0].as_py() for name in table.column_names if "config." in name}
    assert of_keys == {
        "config.data.source": "data_pipeline/shard/quickstart.parquet",
        "config.model.bias": False,
        "config.optim.learning_rate": 1e-2,
        "config.sample.prompts": '["The "]',
        "config.seed": 1337.0,
    }
    assert table["config.sample.prompts"][-1].as_py() == '["a", "b"]'


def test_csv_has_the_same(runs, tmp_path):
    rows.write(runs, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as f:
        read = list(csv.DictReader(f))
    expected = rows.table(runs).to_pylist()
    assert len(read) == len(expected)
    for row, values in zip(read, expected, strict=True):
        assert list(row) == list(values)
        for name, value in values.items():
            if isinstance(value, float):
                assert math.isclose(float(row[name]), value, rel_tol=1e-15)
            else:
                assert (
                    row[name] == ("" if value is None else str(value).lower()) or value == row[name]
                )


def test_another_suffix_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"--rows=.*rows\.xlsx: the name must end in one of \.csv"):
        rows.write(runs, tmp_path / "rows.xlsx")
