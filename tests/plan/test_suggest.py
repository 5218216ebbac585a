"""Suggested sizes: the law against its paper, the search against an exhaustive one."""

import copy
import math

import numpy as np
import pytest

from configs import rtx4070, rtx4070_best
from configs.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.model.flops import flops_per_token
from gptjax.plan import devices, run_data, scaling_law, suggest
from gptjax.plan.run_data import Data
from gptjax.plan.scaling_law import effective_params, effective_tokens

PEAK = 2 * 256 * 46 * 2.475e9  # FLOP/s of an RTX 4070: multiply-adds, multiprocessors, clock


def test_effective_tokens():
    assert effective_tokens(100, 0.5) == 50
    assert effective_tokens(100, 1) == 100
    # Up to 4 passes nearly as good as new; 15.39 repetitions give 1 - 1/e of the possible gain.
    assert effective_tokens(100, 4) == pytest.approx(400, rel=0.1)
    assert effective_tokens(100, 1 + 15.39) == pytest.approx(100 + 1539 * (1 - 1 / math.e))
    assert effective_tokens(100, 1e6) == pytest.approx(1639)


def test_effective_params():
    optimal = scaling_law.PARAMS_PER_TOKEN * 1e9
    assert optimal == pytest.approx(0.051e9, rel=0.01)  # the paper's, 20 tokens a parameter
    assert effective_params(1e6, 1e9) == 1e6
    assert effective_params(optimal, 1e9) == pytest.approx(optimal)
    assert effective_params(6.31 * optimal, 1e9) == pytest.approx(
        optimal * (1 + 5.31 * (1 - 1 / math.e))
    )


def test_one_pass_is_the_law_of_hoffmann_and_others():
    n_params, tokens = 30e6, 1e9
    expected = 1.87 + 521 / n_params**0.353 + 1488 / tokens**0.353
    assert scaling_law.loss(n_params, tokens, 1.0) == pytest.approx(expected)
    assert scaling_law.loss(n_params, 2 * tokens, 0.5) == pytest.approx(expected)


def test_five_days_of_the_card_give_the_known_optimum_of_the_law():
    # 250-290M parameters at 13-16 passes for 0.73e9 tokens and the compute of 18-25e9 tokens at
    # 124M parameters (found by others with the paper's code).
    unique = 0.73e9
    for tokens, low, high in ((18e9, 240e6, 260e6), (25e9, 275e6, 295e6)):
        compute = 124e6 * tokens
        sizes = np.geomspace(2e7, 1e9, 800)
        losses = [scaling_law.loss(n, unique, compute / n / unique) for n in sizes]
        assert low < sizes[int(np.argmin(losses))] < high


@pytest.fixture(scope="module")
def recipe():
    config = rtx4070.get_config()
    config.optim.schedule = "wsd"
    return config


@pytest.fixture(scope="module")
def suggested(recipe):
    device, data = devices.find("rtx4070"), run_data.find(recipe)
    return suggest.suggest(recipe, device, data, days=5, flops_per_sec=0.4 * PEAK)


def test_the_best_is_the_smallest_of_the_best_of_all_depths(recipe, suggested):
    suggestions, best = suggested
    losses = {}
    for n_layer in range(2, 49):
        width, depth_params = 64 * n_layer, 12 * n_layer * (64 * n_layer) ** 2
        n_params = depth_params + (2 * n_layer + 1) * width + (32_768 + 1024) * width
        flops = 6 * (depth_params + 32_768 * width) + 12 * n_layer * width * 1024
        passes = min(5 * 86400 * 0.4 * PEAK / flops / (0.995 * 730e6), recipe.train.max_epochs)
        losses[n_layer] = scaling_law.loss(n_params, 0.995 * 730e6, passes)
    plan = suggestions[best].plan
    equally_good = [n_layer for n_layer in losses if losses[n_layer] < min(losses.values()) + 1e-3]
    assert plan.model_config.n_layer == equally_good[0]
    assert suggestions[best].loss == pytest.approx(losses[equally_good[0]])
    depths = [s.plan.model_config.n_layer for s in suggestions]
    nearest = range(plan.model_config.n_layer - 3, plan.model_config.n_layer + 4)
    assert depths == [n for n in nearest if n <= depths[-1]]  # more layers do not fit into memory


def test_suggestions_use_the_time_keep_the_tokens_per_step_and_fit(recipe, suggested):
    for suggestion in suggested[0]:
        plan = suggestion.plan
        if suggestion.bound == "time":
            assert plan.seconds_at(0.4) == pytest.approx(5 * 86400, rel=1e-3)
            assert plan.passes <= recipe.train.max_epochs
        else:
            assert plan.passes == pytest.approx(recipe.train.max_epochs, rel=1e-3)
            assert plan.seconds_at(0.4) <= 5 * 86400
        assert plan.tokens_per_step == 491_520
        assert plan.fits and plan.model_config.head_dim == 64
        optim, max_iters = plan.config.optim, plan.config.train.max_iters
        assert optim.lr_decay_iters == max_iters
        assert optim.warmup_iters <= max_iters // 10 and optim.wsd_decay_iters <= max_iters // 5


def test_little_data_bounds_the_passes_and_the_size(recipe):
    device, data = devices.find("rtx4070"), Data(5_000_000, 10**5, "given")
    suggestions, best = suggest.suggest(recipe, device, data, days=5, flops_per_sec=0.4 * PEAK)
    plan = suggestions[best].plan
    assert {s.bound for s in suggestions} == {"passes"}
    assert plan.passes <= recipe.train.max_epochs
    assert plan.n_params < 150e6  # for the whole shard it is 236M
    text = suggest.describe(suggestions, best, days=5, speed="")
    assert "The bound is passes, 8 over the data (train.max_epochs)" in text


def test_a_step_larger_than_all_passes_is_refused(recipe):
    device, data = devices.find("rtx4070"), Data(60_000, 1000, "given")
    with pytest.raises(UserError, match="train.gradient_accumulation_steps"):
        suggest.suggest(recipe, device, data, days=5, flops_per_sec=1e12)


def test_the_flags_configure_the_best_suggestion(recipe, suggested):
    suggestions, best = suggested
    text = suggest.describe(suggestions, best, days=5, speed="23 TFLOP/s")
    config = copy.deepcopy(recipe)
    for line in text.splitlines():
        if line.strip().startswith("--config."):
            key, value = line.strip().removeprefix("--config.").split("=")
            config.update_from_flattened_dict({key: int(value)})
    plan = suggestions[best].plan
    assert (
        config.model.n_layer == plan.model_config.n_layer
        and config.model.n_head == plan.model_config.n_head
    )
    assert config.model.n_embd == plan.model_config.n_embd
    assert config.train == plan.config.train
    assert config.model.scan_unroll == config.model.n_layer  # as in the recipe
    assert config.optim.wsd_decay_iters == plan.config.optim.wsd_decay_iters
    assert sum(line.lstrip().startswith("->") for line in text.splitlines()) == 1
    assert f"The bound is {suggestions[best].bound}, " in text
    assert {s.bound for s in suggestions} == {"time", "passes"}  # the smaller ones have time left


@pytest.mark.slow
def test_the_best_recipe_is_as_good_as_the_suggestion():
    config = rtx4070_best.get_config()
    device, data = devices.find("rtx4070"), run_data.find(config)
    suggestions, best = suggest.suggest(config, device, data, days=5, flops_per_sec=0.4 * PEAK)
    (own,) = [s for s in suggestions if s.plan.model_config.n_layer == config.model.n_layer]
    assert (
        own.plan.model_config.n_embd == config.model.n_embd
        and own.plan.model_config.n_head == config.model.n_head
    )
    assert own.loss < suggestions[best].loss + 1e-3  # of 3.086 nats: what the law cannot tell apart
    assert config.train.max_iters == pytest.approx(own.plan.config.train.max_iters, rel=0.01)


def test_grouped_heads_and_a_width_of_its_own_keep_their_proportions(recipe):
    config = copy.deepcopy(recipe)
    config.model.n_head, config.model.n_kv_head, config.model.mlp_dim = 8, 2, 3 * 512
    shapes = suggest._shapes(config)
    assert all(
        s.model.n_head == 4 * s.model.n_kv_head and s.model.mlp_dim == 3 * s.model.n_embd
        for s in shapes
    )
    assert {s.model.n_embd // s.model.n_head for s in shapes} == {64}
    flags = suggest._flags(shapes[5])
    assert flags["model.n_kv_head"] == shapes[5].model.n_kv_head
    assert flags["model.mlp_dim"] == shapes[5].model.mlp_dim


def test_speed_is_given_measured_or_assumed_or_else_asked_for(debug_config, tmp_path):
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path)
    card, local = devices.find("rtx4070"), devices.local()
    assert suggest.sustained_flops(config, card, None)[0] == pytest.approx(0.4 * PEAK)
    assert suggest.sustained_flops(config, card, 20.0)[0] == pytest.approx(20e12)
    with pytest.raises(UserError, match="--tflops"):
        suggest.sustained_flops(config, local, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "perf/tokens_per_sec": 1000.0}\n')
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    flops_per_sec, origin = suggest.sustained_flops(config, local, None)
    assert flops_per_sec == pytest.approx(1000 * flops_per_token(model_config))
    assert "measured" in origin


def test_impossible_requests_are_refused(recipe):
    device, data = devices.find("rtx4070"), Data(10**9, 10**6, "given")
    with pytest.raises(UserError, match="--days"):
        suggest.suggest(recipe, device, data, days=0, flops_per_sec=1e12)
    with pytest.raises(UserError, match="known"):
        suggest.suggest(recipe, device, Data(None, None, "no file"), days=1, flops_per_sec=1e12)
    with pytest.raises(UserError, match="no size fits"):
        suggest.suggest(recipe, device, data, days=1e-9, flops_per_sec=1e12)
