"""Means, clocks and windows of metrics, against closed forms."""

import copy
import json
import math

import jax
import numpy as np
import pytest

from gptjax.metrics.aggregate import average
from gptjax.metrics.throughput import Clock, Window
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions
from gptjax.train.validation import Validation


@pytest.fixture(scope="module", params=[(False, 5), (True, 3)], ids=["plain", "document_mask"])
def validation(request, debug_config, store):
    """The whole val split, in batches whose size does not divide its rows."""
    config = copy.deepcopy(debug_config)
    config.data.document_mask, config.train.batch_size = request.param
    config.model.block_size = 500
    config.model.n_layer = 1
    config.eval.eval_iters = 10**9
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    mesh = make_mesh(1, jax.devices()[:1])
    steps = StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)
    return Validation(config, store, steps), steps


def test_a_uniform_model_has_the_closed_form(validation, store):
    validation, steps = validation
    split = store.split("val")
    params = steps.init_state().params
    params["wte"] = np.zeros_like(params["wte"])  # all logits are 0
    metrics = validation.run(params)
    vocab_size = store.tokenizer.vocab_size
    assert metrics["loss"] == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    # Each token of the split is a target once, the BOS of each document included.
    expected = split.n_tokens * math.log2(vocab_size) / split.n_bytes
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_validation_sees_each_token_of_the_split_once(validation, store):
    validation, _ = validation
    split = store.split("val")
    kept = [b["targets"][b["loss_mask"]] for b in validation._batches[""]]
    counts = np.bincount(np.concatenate(kept), minlength=store.tokenizer.vocab_size)
    tokens = [split.read(d, 0, split.doc_lengths[d]) for d in range(split.n_docs)]
    expected = np.bincount(np.concatenate(tokens), minlength=store.tokenizer.vocab_size)
    np.testing.assert_array_equal(counts, expected)


def test_validation_reads_no_more_than_eval_iters(debug_config, store):
    config = copy.deepcopy(debug_config)
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    mesh = make_mesh(1, jax.devices()[:1])
    steps = StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)
    config.seed = 99  # another run is measured on the same rows
    a, b = Validation(config, store, steps), Validation(debug_config, store, steps)
    assert len(a._batches[""]) == 2
    assert sum(int(batch["loss_mask"].sum()) for batch in a._batches[""]) == 2 * 4 * 32
    np.testing.assert_array_equal(a._batches[""][1]["inputs"], b._batches[""][1]["inputs"])


def test_average_divides_sums_once():
    steps = [
        {"nats": 10.0, "n_targets": 4, "n_bytes": 20},
        {"nats": 1.0, "n_targets": 1, "n_bytes": 1},
    ]
    means = average(steps)
    assert means["loss"] == 11 / 5  # not the mean of 2.5 and 1
    assert means["perplexity"] == math.exp(11 / 5)
    assert means["bits_per_byte"] == pytest.approx(11 * 1.442695041 / 21)


class FakeTime:
    now = 100.0

    def __call__(self):
        return self.now


def test_clock_excludes_pauses_and_continues_from_before():
    time = FakeTime()
    clock = Clock(50.0, time)
    time.now += 7
    assert clock.seconds == 57
    with clock.paused():
        time.now += 1000
        assert clock.seconds == 57
    time.now += 3
    assert clock.seconds == 60


def test_clock_continues_after_an_error_in_a_pause():
    time = FakeTime()
    clock = Clock(0.0, time)
    with pytest.raises(RuntimeError), clock.paused():
        raise RuntimeError
    time.now += 2
    assert clock.seconds == 2


def test_window_rates():
    time = FakeTime()
    clock = Clock(0.0, time)
    window = Window(clock, flops_per_token=50, peak_flops=1e5)
    for nats in (20.0, 10.0):
        with window.waiting():
            time.now += 0.5
        time.now += 1.5
        step = {"nats": nats, "n_targets": 10, "n_bytes": 30, "grad_norm": nats}
        window.add({**step, "param_norm": 7.0, "learning_rate": nats / 100})
    scalars = window.scalars()
    assert window.seconds_per_step == 2
    assert scalars["perf/tokens_per_sec"] == 20 / 4
    assert scalars["perf/mfu"] == 5 * 50 / 1e5
    assert scalars["data/wait_frac"] == 0.25
    assert scalars["train/loss"] == 1.5
    assert scalars["optim/grad_norm"] == 15
    assert scalars["optim/learning_rate"] == 0.1
    window.restart()
    time.now += 1
    window.add({**step, "param_norm": 7.0, "learning_rate": 0.0})
    assert window.scalars()["perf/tokens_per_sec"] == 10


def test_a_window_excludes_skipped_steps_but_not_their_time():
    time = FakeTime()
    window = Window(Clock(0.0, time), flops_per_token=1, peak_flops=None)
    good = {"nats": 20.0, "n_targets": 10, "n_bytes": 30, "grad_norm": 2.0}
    good |= {"param_norm": 1.0, "learning_rate": 0.1}
    time.now += 4
    window.add({**good, "nats": math.nan, "grad_norm": math.inf}, skipped=True)
    scalars = window.scalars()
    assert scalars["train/loss"] is scalars["optim/grad_norm"] is None
    window.add(good)
    scalars = window.scalars()
    assert scalars["train/loss"] == 2.0 and scalars["optim/grad_norm"] == 2.0
    assert scalars["perf/tokens_per_sec"] == 20 / 4


def test_a_step_that_was_not_timed_does_not_count_as_speed():
    time = FakeTime()
    window = Window(Clock(0.0, time), flops_per_token=1, peak_flops=None)
    step = dict.fromkeys(("nats", "n_bytes", "grad_norm", "param_norm", "learning_rate"), 1.0)
    window.add({**step, "n_targets": 10.0}, timed=False)
    assert window.seconds_per_step is None
    assert window.scalars()["perf/tokens_per_sec"] is None
    time.now += 2
    window.add({**step, "n_targets": 10.0})
    assert window.seconds_per_step == 2
    assert window.scalars()["perf/tokens_per_sec"] == 5


def test_a_window_resumes_from_its_state():
    time = FakeTime()
    clock = Clock(0.0, time)
    window = Window(clock, flops_per_token=1, peak_flops=None)
    step = dict.fromkeys(("n_targets", "n_bytes", "grad_norm", "param_norm", "learning_rate"), 0.1)
    time.now += 3
    window.add({**step, "nats": 1 / 3})
    state = json.loads(json.dumps(window.state))
    other_time = FakeTime()
    other_time.now = 5.0
    other = Window(
        Clock(clock.seconds, other_time), flops_per_token=1, peak_flops=None, state=state
    )
    for w, t in ((window, time), (other, other_time)):
        t.now += 1
        w.add({**step, "nats": 0.7})
    assert other.scalars() == window.scalars()


def test_without_a_peak_there_is_no_mfu():
    time = FakeTime()
    window = Window(Clock(0.0, time), flops_per_token=1, peak_flops=None)
    time.now += 1
    step = dict.fromkeys(("nats", "n_targets", "n_bytes", "grad_norm"), 1.0)
    window.add({**step, "param_norm": 1.0, "learning_rate": 1.0})
    assert window.scalars()["perf/mfu"] is None
