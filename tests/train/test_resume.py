"""A resumed run equals one that never stopped, bit for bit."""

import copy
import hashlib
import json
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from gptjax.checkpoint import storage
from gptjax.common.workdir import START
from gptjax.inference.load import load_run
from gptjax.train import trainer


class RecordingSteps(trainer.StepFunctions):
    """Keeps a digest of every batch that is trained on, and can send a signal after some step."""

    batches: dict[int, str] = {}
    row_lengths: dict[int, int] = {}
    signal_after: int | None = None
    _compiled: dict[str, dict] = {}  # tests share what was compiled for the same step

    def __init__(self, config, *args, **kwargs):
        parts = [config[group].to_json() for group in ("model", "optim", "data")]
        train_config = config.train
        batch = [train_config.batch_size, train_config.gradient_accumulation_steps]
        batch += [train_config.later_tokens, train_config.later_tokens_iters]
        ends = config.optim.schedule == "wsd" or config.optim.rewarm_at
        end = train_config.max_iters if ends else None
        key = json.dumps([*parts, batch, end, config.seed])
        if key in self._compiled:
            self.__dict__.update(self._compiled[key])
        else:
            super().__init__(config, *args, **kwargs)
            self._compiled[key] = dict(self.__dict__)
        compiled = self.train_step

        def train_step(state, batch, row_length):
            step = int(state.step) + 1
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(np.asarray(batch[name]).tobytes())
            assert step not in self.batches, "a step was trained twice"
            self.batches[step] = digest.hexdigest()
            self.row_lengths[step] = row_length
            if step == self.signal_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return compiled(state, batch, row_length)

        self.train_step = train_step


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(trainer, "StepFunctions", RecordingSteps)
    monkeypatch.setattr(RecordingSteps, "signal_after", None)

    def run(config, signal_after=None):
        RecordingSteps.batches = {}
        RecordingSteps.signal_after = signal_after
        state = trainer.train_and_evaluate(config)
        return jax.device_get(state), RecordingSteps.batches

    return run


@pytest.fixture
def config(config, tmp_path):
    config.workdir = str(tmp_path / "unbroken")
    config.model.dropout = 0.1  # so that the dropout key matters
    config.eval.eval_interval = 3
    return config


def assert_same_bits(a, b):
    leaves_a, tree_a = jax.tree_util.tree_flatten_with_path(a)
    leaves_b, tree_b = jax.tree_util.tree_flatten_with_path(b)
    assert tree_a == tree_b
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        assert x.tobytes() == y.tobytes(), name


def metric_lines(config):
    """The lines of metrics.jsonl but those of starts, without what depends on the time of day."""
    with open(f"{config.workdir}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file if START not in line]
    timed = ("time", "perf/", "data/wait_frac")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def test_resuming_is_bit_identical(recording, config, tmp_path):
    whole, whole_batches = recording(config)
    assert sorted(whole_batches) == list(range(1, 9))

    broken = copy.deepcopy(config)
    broken.workdir = str(tmp_path / "broken")
    broken.train.max_iters = 4  # not a multiple of eval_interval: saved only because the run ends
    half, first_batches = recording(broken)
    assert int(half.step) == 4
    broken.train.max_iters = 8
    rest, rest_batches = recording(broken)

    assert_same_bits(rest, whole)
    assert first_batches | rest_batches == whole_batches
    assert len(set(whole_batches.values())) == 8  # and the batches differ from each other


def test_resuming_among_short_rows_is_bit_identical(recording, config, tmp_path):
    """Each step has the rows of its number, before and after the stop."""
    config.train.row_lengths = ((3, 8), (6, 16))
    config.train.later_tokens, config.train.later_tokens_iters = (0.5,), 5
    lengths = [8, 8, 8, 16, 16, 16, 32, 32]
    whole, whole_batches = recording(config)
    assert [RecordingSteps.row_lengths[step] for step in range(1, 9)] == lengths

    stopped = copy.deepcopy(config)
    stopped.workdir = str(tmp_path / "stopped")
    half, first_batches = recording(stopped, signal_after=4)
    assert int(half.step) == 4
    RecordingSteps.row_lengths = {}
    rest, rest_batches = recording(stopped)
    assert RecordingSteps.row_lengths == dict(zip(range(5, 9), lengths[4:], strict=True))
    assert_same_bits(rest, whole)
    assert first_batches | rest_batches == whole_batches
    assert metric_lines(stopped) == metric_lines(config)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_resuming_after_sigterm_is_bit_identical(recording, config, tmp_path, optimizer):
    """With every part of the state: Muon's momentum, sums of micro-steps, an average."""
    if optimizer == "muon":
        config.optim.optimizer, config.optim.ema_decay = "muon", 0.9
        config.optim.weight_decay_schedule = "linear"
        assert config.train.gradient_accumulation_steps == 2
    whole, whole_batches = recording(config)
    assert (whole.ema_params is not None) == (optimizer == "muon")
    whole_lines = metric_lines(config)

    stopped = copy.deepcopy(config)
    stopped.workdir = str(tmp_path / "stopped")
    half, first_batches = recording(stopped, signal_after=5)
    assert int(half.step) == 5
    rest, rest_batches = recording(stopped)

    assert_same_bits(rest, whole)
    assert first_batches | rest_batches == whole_batches
    assert metric_lines(stopped) == whole_lines  # no step twice, none missing
    with open(f"{stopped.workdir}/metrics.jsonl") as file:
        starts = [json.loads(line)[START] for line in file if START in line]
    assert starts == [0, 5]


def test_resuming_reads_the_store_and_not_its_source(recording, config, tmp_path, caplog):
    source = tmp_path / "mount" / "quickstart.parquet"
    source.parent.mkdir()
    shutil.copy(config.data.source, source)
    config.data.source = str(source)
    config.train.max_iters = 4
    whole, whole_batches = recording(config)

    stopped = copy.deepcopy(config)
    stopped.workdir = str(tmp_path / "stopped")
    _, first_batches = recording(stopped, signal_after=2)
    source.unlink()
    (other := copy.deepcopy(stopped)).data.cache_dir = str(tmp_path / "empty")
    with pytest.raises(UserError, match=f"no file.*{source}.*no complete store in data.cache_dir"):
        recording(other)
    for key, value in (
        ("workdir", str(tmp_path / "new")),  # a new run
        ("data.source", str(source.parent)),  # another source, which is not there either
        ("data.val_fraction", 0.06),
    ):
        other = copy.deepcopy(stopped)
        other.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match="data.source: .*HuggingFaceFW/fineweb"):
            recording(other)
    assert not (tmp_path / "new").exists()

    rest, rest_batches = recording(stopped)
    assert f"there is no file or folder {source}" in caplog.text
    assert "resumes from what its checkpoint names" in caplog.text
    assert config.data.cache_dir in caplog.text
    assert sorted(first_batches) == [1, 2] and sorted(rest_batches) == [3, 4]
    assert first_batches | rest_batches == whole_batches
    assert_same_bits(rest, whole)


@pytest.mark.slow
def test_a_wsd_run_made_longer_is_the_longer_run_bit_for_bit(recording, config, tmp_path, caplog):
    """Also after its end: the last checkpoint before the decay is kept."""
    config.optim.schedule, config.optim.wsd_decay_iters = "wsd", 3
    config.checkpoint.keep_latest, config.checkpoint.keep_best = 1, 0
    whole, _ = recording(config)

    extended = copy.deepcopy(config)
    extended.workdir = str(tmp_path / "extended")
    extended.train.max_iters = 6  # its decay begins at step 3, which is saved
    recording(extended)
    extended.train.max_iters = 8
    with pytest.raises(UserError, match="until its decay begins, at step 3"):
        recording(extended)
    folder = tmp_path / "extended" / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"3", "6"}
    (folder / "6").rename(tmp_path / "away")
    with caplog.at_level(logging.INFO):
        rest, batches = recording(extended)
    assert "train.max_iters: 6 saved, 8 now" in caplog.text
    assert sorted(batches) == [4, 5, 6, 7, 8]
    assert_same_bits(rest, whole)


def test_damage_on_disk_costs_the_steps_since_the_one_before(recording, config, tmp_path, caplog):
    whole, whole_batches = recording(config)
    lines = metric_lines(config)
    folder = tmp_path / "unbroken" / "checkpoints"
    params = [p for p in (folder / "8" / "params").rglob("*") if p.is_file()]
    data = max(params, key=lambda p: p.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    again, batches = recording(config)
    assert "checkpoints/8 is DAMAGED" in caplog.text and (folder / "damaged" / "8").is_dir()
    assert batches == {step: whole_batches[step] for step in (7, 8)}
    assert_same_bits(again, whole)
    assert metric_lines(config) == lines


def test_a_finished_run_is_left_alone(recording, config):
    first, _ = recording(config)
    second, batches = recording(config)
    assert batches == {}
    assert_same_bits(second, first)


def test_lines_of_steps_that_were_lost_are_dropped(recording, config):
    config.train.max_iters = 4
    recording(config)
    before = metric_lines(config)
    with open(f"{config.workdir}/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "train/loss": 1.0}\n{"step": 6, "tr')  # killed in mid-write
    recording(config)
    assert metric_lines(config) == before


def test_a_cosine_is_extended_by_request_and_resumes(recording, config, caplog):
    """From its checkpoint, with a stop in between, as if it had been planned so."""
    caplog.set_level(logging.INFO, "gptjax")
    recording(config)
    config.train.max_iters = 24  # the cosine has 20
    with pytest.raises(UserError, match=r'rewarm_at="\(8,\)"'):
        recording(config)
    config.train.max_iters = 14
    config.optim.rewarm_at = (8,)
    stopped, _ = recording(config, signal_after=11)
    assert int(stopped.step) in (11, 12)
    state, _ = recording(config)
    assert caplog.text.count("After step 8 the learning rate rises again") == 2
    lines = [line for line in metric_lines(config) if "train/loss" in line]
    rates = {line["step"]: line["optim/learning_rate"] for line in lines}
    assert rates[11] == rates[3] == max(rates.values())
    assert rates[8] < rates[9] < rates[10] < rates[11] > rates[12] > rates[13] > rates[14]
    planned = copy.deepcopy(config)
    planned.workdir += "-planned"
    assert_same_bits(state, recording(planned)[0])


@pytest.fixture
def scripted_losses(monkeypatch):
    """Evaluations find these val losses, in turn: the best is not the latest."""
    losses = iter([5.0, 3.0, 4.0, 2.9999, 6.0, 7.0, 8.0, 9.0])

    def run(self, params):
        loss = next(losses)
        return {"loss": loss, "perplexity": np.exp(loss), "bits_per_byte": loss}

    monkeypatch.setattr(trainer.Validation, "run", run)


def saved_steps(tmp_path):
    return {int(p.name) for p in (tmp_path / "unbroken" / "checkpoints").iterdir()}


@pytest.mark.usefixtures("scripted_losses")
def test_keeps_the_latest_and_the_best(recording, config, tmp_path):
    config.checkpoint.keep_latest = 2
    config.eval.eval_interval = 1
    recording(config)
    assert saved_steps(tmp_path) == {4, 7, 8}


@pytest.mark.usefixtures("scripted_losses")
@pytest.mark.parametrize("change", [{}, {"eval_iters": 1}, {"batch_size": 2}])
def test_the_best_is_of_one_number_of_validation_rows(recording, config, tmp_path, caplog, change):
    """Losses on 8 rows until step 4, of which the last is the best; then perhaps on 4 rows."""
    config.checkpoint.keep_latest = 2
    config.eval.eval_interval = 1
    config.train.max_iters = 4
    recording(config)
    config.train.max_iters = 8
    for key, value in change.items():
        group = config.eval if key in config.eval else config.train
        group[key] = value
    config.train.gradient_accumulation_steps = 8 // config.train.batch_size
    caplog.set_level(logging.INFO, "gptjax")
    recording(config)
    best = 5 if change else 4
    assert saved_steps(tmp_path) == {best, 7, 8}
    assert storage.by_val_loss(tmp_path / "unbroken" / "checkpoints")[0] == best
    assert load_run(tmp_path / "unbroken").step == best
    assert caplog.text.count("best so far") == (1 if change else 0)


@pytest.mark.usefixtures("scripted_losses")
def test_without_always_save_only_a_better_loss_is_saved(recording, config, tmp_path):
    config.checkpoint.always_save_checkpoint = False
    config.checkpoint.keep_latest = 100
    config.eval.eval_interval = 1
    recording(config)
    assert saved_steps(tmp_path) == {1, 2, 4, 8}  # 8: the end of a run is always saved


@pytest.mark.usefixtures("scripted_losses")
def test_a_resumed_run_remembers_its_best_loss(recording, config, tmp_path):
    """Else the first evaluation after the restart, a worse one, would be saved as the best."""
    config.checkpoint.always_save_checkpoint = False
    config.checkpoint.keep_latest = 100
    config.eval.eval_interval = 1
    for config.train.max_iters in (4, 8):
        recording(config)
    assert saved_steps(tmp_path) == {1, 2, 4, 8}


def times_of_files(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]
    return {p: p.stat().st_mtime_ns for p in files}


def test_another_run_is_refused_with_every_difference(recording, config, tmp_path):
    config.train.max_iters = 2
    recording(config)
    before = times_of_files(tmp_path / "unbroken")
    other = copy.deepcopy(config)
    other.model.n_embd = 64
    other.model.n_layer = 3
    other.seed = 1
    other.data.val_fraction = 0.06  # another store
    other.train.gradient_accumulation_steps = 1
    with pytest.raises(UserError) as error:
        recording(other)
    message = str(error.value)
    for words in ("n_embd: 32 saved, 64 now", "n_layer: 2", "seed: 1337", "store_hash"):
        assert words in message
    assert "train.gradient_accumulation_steps > 1: True saved, False now" in message
    assert "config.workdir" in message
    assert times_of_files(tmp_path / "unbroken") == before


def test_another_store_is_refused_and_the_difference_is_named(recording, config, tmp_path):
    config.train.max_iters = 2
    recording(config)
    other = copy.deepcopy(config)
    other.data.val_fraction = 0.06
    source = pq.read_table(config.data.source)
    pq.write_table(source.slice(1), tmp_path / "other.parquet")
    for name, value, words in (
        ("source", str(tmp_path / "other.parquet"), r"data.sources.0.file: quickstart.par"),
        ("val_fraction", 0.06, r"data.settings.val_fraction: 0.05 saved, 0.06 now"),
    ):
        other = copy.deepcopy(config)
        other.data[name] = value
        with pytest.raises(UserError, match=words) as error:
            recording(other)
        assert "store_hash: " in str(error.value) and "data.format" not in str(error.value)
    assert "data.sources" not in str(error.value)  # only what differs


def test_a_ruined_state_stops_the_run_and_is_not_saved(recording, config, tmp_path):
    """Its parameters are finite, and so is the val loss; but no step succeeds any more."""
    config.optim.learning_rate = config.optim.min_lr = 1e30
    config.optim.grad_clip = 0.0
    config.optim.warmup_iters = 0
    config.train.max_consecutive_skips = 5
    with pytest.raises(UserError, match="step 6 is number 5 in a row.*learning_rate"):
        recording(config)
    folder = tmp_path / "unbroken" / "checkpoints"
    assert not [p for p in folder.iterdir() if p.name.isdigit()]


def test_lines_do_not_depend_on_where_a_run_stopped(recording, config, tmp_path):
    """Also those of a window of steps that a stop cuts in two."""
    config.train.log_interval = 4
    recording(config)
    stopped = copy.deepcopy(config)
    stopped.workdir = str(tmp_path / "stopped")
    for max_iters in (3, 6, 8):
        stopped.train.max_iters = max_iters
        recording(stopped)
    assert metric_lines(stopped) == metric_lines(config)


def test_clocks_continue(recording, config):
    for max_iters in (4, 8):
        config.train.max_iters = max_iters
        recording(config)
    with open(f"{config.workdir}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    clock = [line["perf/train_seconds"] for line in lines if "train/loss" in line]
    assert clock == sorted(clock) and len(clock) == 8
    times = [line["time"] for line in lines]
    assert times == sorted(times)
