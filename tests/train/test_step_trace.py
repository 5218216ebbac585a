"""--profile: traces that TensorBoard and Perfetto open, of a run that is otherwise the same."""

import copy
import gzip
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_resume import assert_same_bits, metric_lines

from configs.errors import UserError
from gptjax.train import trainer
from gptjax.train.step_trace import StepTrace, parse_steps

ROOT = Path(__file__).parents[2]


def events_of(workdir):
    """The events of the only trace, as Perfetto reads them."""
    (folder,) = (Path(workdir) / "profile" / "plugins" / "profile").iterdir()
    (xplane,) = folder.glob("*.xplane.pb")  # TensorBoard's
    assert b"/host:CPU" in xplane.read_bytes()
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        return json.load(file)["traceEvents"]


def test_the_steps_are_in_the_trace_and_nothing_else_changes(config, tmp_path):
    plain = copy.deepcopy(config)
    plain.workdir = str(tmp_path / "plain")
    whole = trainer.train_and_evaluate(plain)
    state = trainer.train_and_evaluate(config, range(3, 6))
    assert_same_bits(jax.device_get(state), jax.device_get(whole))
    assert metric_lines(config) == metric_lines(plain)
    left, others = ({p.name for p in Path(c.workdir).iterdir()} for c in (config, plain))
    assert left - others == {"profile"}
    events = events_of(config.workdir)
    steps = {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    assert steps == {3, 4, 5}
    assert sum("dot" in e.get("name", "") for e in events) > 2 * 3 * 2  # XLA's operations


def test_the_first_and_the_last_step_are_whole(monkeypatch, tmp_path):
    """Steps run behind their dispatch: the trace waits for those before it, and for the last."""
    events = []
    monkeypatch.setattr(jax, "block_until_ready", lambda state: events.append(f"wait, {state}"))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    trace = StepTrace(tmp_path, range(2, 4), 0, 8)
    for step in range(1, 5):
        with trace.step(step, lambda: f"{len(events)} events"):
            events.append(step)
    assert events == [1, "wait, 1 events", "start", 2, 3, "wait, 5 events", "stop", 4]


def test_a_trace_that_the_run_ends_is_written(config, monkeypatch):
    class Interrupted(Exception):
        pass

    real = trainer.Trainer._dispatch

    def dispatch(self):
        if self.step == 4:
            raise Interrupted
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "_dispatch", dispatch)
    with pytest.raises(Interrupted):
        trainer.train_and_evaluate(config, range(3, 6))
    assert events_of(config.workdir)


def test_a_trace_that_cannot_be_written_is_reported(config, monkeypatch, caplog):
    (Path(config.workdir)).mkdir()
    (Path(config.workdir) / "profile").write_text("a file where the folder belongs")
    assert int(trainer.train_and_evaluate(config, range(2, 4)).step) == 8
    assert "No trace was written" in caplog.text


@pytest.mark.parametrize("text", ["10", "10:", "0:3", "13:10", "-1:3", "1.5:3", "a:b", "1:2:3"])
def test_steps_that_are_no_range_are_refused(text):
    with pytest.raises(UserError, match=f"--profile={text} must be the first and the last"):
        parse_steps(text)


def test_a_range_includes_both_ends():
    assert list(parse_steps("10:13")) == [10, 11, 12, 13] and list(parse_steps("7:7")) == [7]
    assert not parse_steps("")


def test_steps_that_the_run_does_not_make_are_refused(tmp_path):
    StepTrace(tmp_path, range(5, 9), 4, 8)
    StepTrace(tmp_path, range(0), 8, 8)
    for steps, done in ((range(5, 9), 5), (range(5, 10), 0)):
        with pytest.raises(UserError, match=f"of this run's 8 steps .* {done} are done"):
            StepTrace(tmp_path, steps, done, 8)


def test_the_flag(config):
    command = [sys.executable, "-m", "gptjax.main", "--config=configs/debug.py", "--profile=2:2"]
    command += [
        f"--config.{key}={value}"
        for key, value in (
            ("workdir", config.workdir),
            ("data.cache_dir", config.data.cache_dir),
            ("train.max_iters", 3),
            ("sample.prompts", "()"),
        )
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Trace written to" in result.stderr and events_of(config.workdir)
