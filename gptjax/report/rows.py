"""The metrics of runs as one table, for pandas and others: CSV or parquet."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from configs.errors import UserError
from data_pipeline.files import write_atomically
from gptjax.report.run_history import History, is_number

_SUFFIXES = (".csv", ".parquet")


def table(runs: Sequence[History]) -> pa.Table:
    """Returns a row for each line of metrics: its run, step and numbers; null: not in the line.

    `setting` is the run's name without a seed. The keys of the configuration in which runs differ
    are columns, too: `config.` and the key, with numbers and texts as they are, else as JSON.
    """
    names = {name: None for run in runs for _, values in run.lines for name in values}
    numbers = [
        name
        for name in names
        if any(is_number(values, name) for run in runs for _, values in run.lines)
    ]
    lines = [(run, step, values) for run in runs for step, values in run.lines]
    columns: dict[str, Any] = {
        "run": pa.array([run.name for run, _, _ in lines], pa.string()),
        "setting": pa.array([run.setting for run, _, _ in lines], pa.string()),
        "step": pa.array([step for _, step, _ in lines], pa.int64()),
    }
    for name in numbers:
        known = [values.get(name) if is_number(values, name) else None for *_, values in lines]
        columns[name] = pa.array([None if v is None else float(v) for v in known], pa.float64())
    for key in sorted({key for run in runs for key in run.config} - {"workdir"}):
        settings = [run.config.get(key) for run in runs]
        if any(setting != settings[0] for setting in settings):
            columns[f"config.{key}"] = _settings([run.config.get(key) for run, _, _ in lines])
    return pa.table(columns)


def _settings(values: Sequence[Any]) -> pa.Array:
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if not all(isinstance(value, str) for value in known):
        values = [None if value is None else json.dumps(value) for value in values]
    return pa.array(values, pa.string())


def write(runs: Sequence[History], out: Path) -> int:
    """Writes the table of `runs` atomically to `out`; returns its number of rows.

    Raises:
        UserError: the suffix is neither .csv nor .parquet.
    """
    if out.suffix not in _SUFFIXES:
        raise UserError(f"--rows={out}: the name must end in one of {', '.join(_SUFFIXES)}.")
    rows, file = table(runs), io.BytesIO()
    if out.suffix == ".csv":
        pyarrow.csv.write_csv(rows, file)
    else:
        pyarrow.parquet.write_table(rows, file)
    write_atomically(out, file.getvalue())
    return rows.num_rows
