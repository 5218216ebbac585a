"""The programs as a user runs them, and their messages for bad input."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from gptjax.train import trainer

ROOT = Path(__file__).parents[2]
SHARD = ROOT / "data_pipeline/shard/quickstart.parquet"


def program(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(debug_config, tmp_path_factory):
    """The debug run through the command line."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    arguments = [
        "--config=configs/debug.py",
        f"--config.workdir={workdir}",
        f"--config.data.cache_dir={debug_config.data.cache_dir}",
        "--config.optim.learning_rate=8e-3",
        "--config.optim.lr_decay_iters=25",  # so that the run can be extended to there
        "--config.log.tensorboard=True",
    ]
    return workdir, arguments, program("gptjax.main", *arguments)


def test_main_trains_and_leaves_a_workdir(trained):
    workdir, _, result = trained
    assert result.returncode == 0, result.stderr
    for words in ("42,144", "passes over the data", "train loss", "val loss", "Sample:"):
        assert words in result.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["optim"]["learning_rate"] == 8e-3
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in train_lines] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "val/loss" in line] == [10, 20]
    assert train_lines[-1]["train/loss"] < train_lines[0]["train/loss"] - 0.3
    assert train_lines[-1]["data/tokens_seen"] == 20 * 2 * 4 * 32
    assert (workdir / "samples/20.txt").read_text().startswith("The ")
    assert list((workdir / "tb").glob("events*"))
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"10", "20"}


def test_main_continues_with_overrides(trained):
    workdir, arguments, _ = trained
    result = program("gptjax.main", *arguments, "--config.train.max_iters=25")
    assert result.returncode == 0, result.stderr
    assert "Continuing from" in result.stderr and "step 25/25" in result.stderr
    assert "step  5/25" not in result.stderr
    assert "encoding" not in result.stderr  # the store was used again


def test_generate_reads_the_workdir(trained):
    workdir, _, _ = trained
    arguments = (f"--workdir={workdir}", "--prompt=The ", "--max_new_tokens=12", "--top_p=0.9")
    first, again = (program("gptjax.generate", *arguments, "--seed=3") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The ") and len(first.stdout) > 8
    assert first.stdout == again.stdout


def test_report_knows_the_metrics_that_a_run_writes(trained):
    workdir, _, _ = trained
    result = program("gptjax.report", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    page = (workdir / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    (run,) = data["runs"]
    written = {name for table in run["tables"] for name in table["values"]}
    for chart in data["charts"]:
        if chart["main"] and chart["title"] != "MFU":
            of_others = {"optim/muon_learning_rate", "optim/head_learning_rate"}
            of_this = set(chart["names"]) - of_others  # AdamW's run, with a tied head
            assert of_this and written >= of_this, chart["title"]
    # 6 x (2 x 12 x 32^2 + 512 x 32) + 12 x 2 x 32 x 32
    assert run["flops_per_token"] == 270_336
    assert "FLOPs are not known" not in page and ">The " in page


def test_rtx4070_runs_on_the_cpu_when_only_shrunk(tmp_path, debug_config):
    result = program(
        "gptjax.main",
        "--config=configs/rtx4070.py",
        "--config.allow_cpu=True",
        f"--config.workdir={tmp_path / 'run'}",
        f"--config.data.source={SHARD}",
        f"--config.data.cache_dir={debug_config.data.cache_dir}",
        "--config.data.val_fraction=0.05",
        "--config.tokenizer.vocab_size=512",
        "--config.tokenizer.sample_bytes=200000",
        "--config.train.batch_size=2",
        "--config.train.gradient_accumulation_steps=2",
        "--config.train.max_iters=4",
        "--config.train.log_interval=2",
        "--config.model.block_size=32",
        "--config.model.loss_chunk=16",
        "--config.model.n_layer=2",
        "--config.model.n_head=2",
        "--config.model.n_embd=32",
        "--config.eval.eval_interval=2",
        "--config.eval.eval_iters=2",
        "--config.sample.max_new_tokens=4",
    )
    assert result.returncode == 0, result.stderr
    assert "in bfloat16" in result.stderr and "step 4/4 | val loss" in result.stderr


def test_a_user_mistake_is_a_paragraph_not_a_traceback(tmp_path):
    result = program(
        "gptjax.main",
        "--config=configs/rtx4070.py",
        "--config.allow_cpu=True",
        f"--config.data.source={tmp_path}",
        f"--config.workdir={tmp_path / 'run'}",
    )
    assert result.returncode == 1
    assert "error: " in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_generate_reports_what_is_missing(tmp_path):
    result = program("gptjax.generate", f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert "config.json" in result.stderr and "Traceback" not in result.stderr


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def _truncated(path: Path) -> None:
    path.write_bytes(SHARD.read_bytes()[:100_000])


BAD = {
    "no file": (lambda path: None, r"data\.source.*FineWeb"),
    "two files, neither parquet": (
        lambda path: [path.with_name(f"{i}.parquet").write_bytes(b"x") for i in "ba"],
        r"/a\.parquet: this is not a parquet file.*[Dd]ownload",
    ),
    "no text column": (
        lambda path: _write(path, pa.table({"id": ["a"], "txt": ["b"]})),
        r"'text'.*txt",
    ),
    "text is a number": (
        lambda path: _write(path, pa.table({"id": ["a"], "text": [1]})),
        r"'text' is of type int64",
    ),
    "zero rows": (
        lambda path: _write(path, pa.table({"id": ["a"], "text": ["b"]}).slice(0, 0)),
        r"zero rows",
    ),
    "empty file": (lambda path: path.write_bytes(b""), r"not a parquet file.*[Dd]ownload"),
    "truncated": (_truncated, r"truncated.*[Dd]ownload"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_changes_nothing(case, debug_config, tmp_path):
    damage, expected = BAD[case]
    source = tmp_path / "shard"
    source.mkdir()
    damage(source / "000_00000.parquet")
    config = copy.deepcopy(debug_config)
    config.data.source = str(source)
    config.data.cache_dir = str(tmp_path / "stores")
    config.workdir = str(tmp_path / "run")
    with pytest.raises(UserError) as error:
        trainer.train_and_evaluate(config)
    message = str(error.value)
    assert re.search(expected, message), message
    assert str(tmp_path) in message and "\n" not in message
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "stores").rglob("manifest.json"))
