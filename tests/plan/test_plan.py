"""The plan of a run: figures, text, and refusals."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, rtx4070
from configs.errors import UserError
from gptjax.plan import devices, memory, planner, render, step_cost
from gptjax.plan.check import refuse_unfit
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.hlo_traffic import Transfer
from gptjax.plan.memory import Memory
from gptjax.plan.planner import Data

GIB = 2**30


@pytest.fixture(scope="module")
def recipe():
    config = rtx4070.get_config()
    return planner.make_plan(config, devices.find("rtx4070"), planner.find_data(config))


def test_figures_of_the_recipe(recipe):
    assert recipe.n_params == 32768 * 512 + 1024 * 512 + 12 * (12 * 512**2 + 2 * 512) + 512
    assert recipe.tokens_per_step == 491_520
    assert recipe.data.train_tokens + recipe.data.val_tokens == 730_000_000
    assert recipe.passes == pytest.approx(250_000 * 491_520 / (0.995 * 730e6))
    assert recipe.seconds_at(0.4) == pytest.approx(
        250_000 * 491_520 * recipe.flops_per_token / (0.4 * 58.3e12)
    )
    arithmetic, traffic, at_best = recipe.step_seconds
    # The model's attention is 6 matmuls of T x T. The step does 7, one of them again inside the
    # backward pass, but only the half that causality leaves.
    hidden = (12 - 7) * 12 * 512 * 1024
    assert arithmetic == pytest.approx(491_520 * (recipe.flops_per_token - hidden) / 58.3e12)
    assert max(arithmetic, traffic) < at_best < arithmetic + traffic


@pytest.fixture(scope="module")
def estimate_at(recipe):
    return planner._estimator(recipe.config, recipe.model_config, recipe.cost, n_devices=1)


def test_the_recipe_fits_and_so_does_the_largest_batch_but_no_more(recipe, estimate_at):
    assert recipe.fits and recipe.peak_bytes == estimate_at(12).total
    largest = recipe.largest_batch
    assert estimate_at(largest).total <= recipe.device.budget_bytes < estimate_at(largest + 1).total


def test_estimates_for_another_batch_size_equal_an_estimate_from_scratch(recipe, estimate_at):
    config = copy.deepcopy(recipe.config)
    config.train.batch_size = 20
    cost = step_cost.analyze(config, recipe.model_config)
    assert estimate_at(20) == memory.estimate(config, recipe.model_config, cost, 1)


def test_claims_are_listed_beside_actual_figures(recipe):
    text = render.describe(recipe, full=True)
    for claimed, so in (
        ("110M parameters", "55.1M"),
        ("6.5e9 tokens of data", "0.73e9"),
        ("15 passes over them", "169"),
        ("22-26 steps a second", "0.29 at the peak"),
        ("batch_size 12 fits", "yes,"),
    ):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(claimed)]
        assert line.split(claimed)[1].strip().startswith(so)


def test_without_claims_there_is_no_section_of_them(recipe):
    config = copy.deepcopy(recipe.config)
    config.model.n_embd = 768
    text = render.describe(dataclasses.replace(recipe, config=config), full=True)
    assert "Claimed" not in text


def test_bfloat16_and_cudnn_are_what_auto_becomes_on_a_card():
    config = base.get_config()
    device = devices.find("rtx3090")
    model = planner.resolve_auto(config, device).model
    assert (model.compute_dtype, model.attention) == ("bfloat16", "cudnn")
    config.data.document_mask = True
    assert planner.resolve_auto(config, device).model.attention == "pallas"
    config.data.document_mask, config.model.compute_dtype = False, "float32"
    assert planner.resolve_auto(config, device).model.attention == "pallas"
    assert config.model.attention == "auto"  # the configuration itself is left alone


class FakeCompiler:
    """A step needs 1 GiB and 0.1 GiB a row; beyond 85 rows XLA starts to recompute."""

    def __init__(self, monkeypatch):
        self.batch_sizes = []
        monkeypatch.setattr(planner.compiler, "compile_step", self)

    def __call__(self, config, model_config, device):
        batch_size = config.train.batch_size
        self.batch_sizes.append(batch_size)
        total = GIB + batch_size * GIB // 10
        n = int(batch_size > 85)
        return CompiledStep(
            total,
            0,
            0,
            0,
            transfers=(Transfer("fusion", "", 1, 0),),
            n_rematerialized=n,
            seconds=1.0,
        )


@pytest.mark.parametrize(("budget_gib", "largest"), [(5, 40), (9, 80), (12, 84), (0.9, 0)])
def test_compiled_figures_overrule_the_estimate(
    monkeypatch, recipe, estimate_at, budget_gib, largest
):
    compiler = FakeCompiler(monkeypatch)
    device = dataclasses.replace(recipe.device, budget_bytes=int(budget_gib * GIB))
    first = compiler(recipe.config, recipe.model_config, device)
    batch_size = planner._largest_compiled(
        recipe.config, recipe.model_config, device, first, estimate_at
    )
    assert largest - 4 <= batch_size <= largest
    assert len(compiler.batch_sizes) <= 1 + planner._MAX_COMPILATIONS


def test_rematerialization_by_xla_is_a_warning(recipe):
    compiled = CompiledStep(
        8 * GIB, 0, 0, 0, transfers=(Transfer("fusion", "", 1, 0),), n_rematerialized=7, seconds=1.0
    )
    warnings = render.warnings(dataclasses.replace(recipe, compiled=compiled))
    assert any("recomputes 7 instructions" in warning for warning in warnings)


def test_a_run_that_cannot_fit_is_refused_with_the_batch_that_does(
    monkeypatch, debug_config, recipe
):
    needed = refuse_unfit(debug_config).peak_bytes
    local = devices.local()

    def with_budget(budget):
        device = dataclasses.replace(local, budget_bytes=int(budget))
        monkeypatch.setattr(devices, "local", lambda: device)

    with_budget(2 * needed)
    assert refuse_unfit(debug_config).compiled is None
    config = copy.deepcopy(debug_config)
    config.train.batch_size = 4096
    with pytest.raises(UserError, match=r"train.batch_size=(\d+) fits") as error:
        refuse_unfit(config)
    fitting = int(str(error.value).split("train.batch_size=")[1].split()[0])
    assert 4 <= fitting < 4096
    with_budget(needed / 100)
    with pytest.raises(UserError, match="no batch size fits"):
        refuse_unfit(debug_config)


def test_a_close_call_is_decided_by_compiling(monkeypatch, debug_config):
    local = devices.local()
    needed = refuse_unfit(debug_config).peak_bytes
    device = dataclasses.replace(local, budget_bytes=needed)
    monkeypatch.setattr(devices, "local", lambda: device)
    FakeCompiler(monkeypatch)  # says 1.4 GiB
    with pytest.raises(UserError, match="needs 1.40 GiB"):
        refuse_unfit(debug_config)


def test_data_of_a_store(debug_config, store):
    data = planner.find_data(debug_config)
    assert data == planner.stored(debug_config, store)
    assert data.train_tokens == store.split("train").n_tokens


def test_data_of_a_source_that_is_not_prepared_is_estimated(debug_config, store, tmp_path):
    config = copy.deepcopy(debug_config)
    config.data.cache_dir = str(tmp_path / "stores")
    data = planner.find_data(config)
    exact = store.split("train").n_tokens
    assert "estimated" in data.origin
    assert data.train_tokens == pytest.approx(exact, rel=0.15)
    assert not (tmp_path / "stores").exists()  # nothing was prepared


def test_the_size_of_missing_data_is_unknown(tmp_path):
    config = base.get_config()
    config.data.source = str(tmp_path / "none.parquet")
    data = planner.find_data(config)
    assert data.train_tokens is None and "none.parquet" in data.origin


def test_warnings(recipe):
    config = copy.deepcopy(recipe.config)
    config.train.max_epochs = 200.0
    config.optim.lr_decay_iters = 300_000
    few = dataclasses.replace(recipe, config=config, data=Data(730_000_000, 1000, ""))
    text = "\n".join(render.warnings(few))
    assert "data.val_fraction" in text and "optim.lr_decay_iters" in text
    assert "max_epochs" not in text
    tight = dataclasses.replace(
        recipe, estimate=Memory(recipe.device.budget_bytes - GIB // 4, 0, 0, 0)
    )
    assert any("0.5 GiB to spare" in w for w in render.warnings(tight))


def test_throughput_measured_in_the_workdir(tmp_path, recipe):
    lines = [{"step": 1, "perf/tokens_per_sec": 1.0}, {"step": 2, "perf/tokens_per_sec": 4e4}]
    lines += [{"step": 2, "val/loss": 3.0}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "perf/to'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert planner.measured_tokens_per_sec(tmp_path) == 4e4
    assert planner.measured_tokens_per_sec(tmp_path / "elsewhere") is None
    measured = dataclasses.replace(recipe, measured_tokens_per_sec=4e4)
    assert "40,000 tokens/s (27.6% of the peak)" in render.describe(measured, full=False)


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gptjax.plan", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_exit_status_says_whether_it_fits():
    fits = program("--config=configs/debug.py")
    assert fits.returncode == 0 and "GiB to spare" in fits.stdout, fits.stderr
    wide = program(
        "--config=configs/rtx4070.py",
        "--target=rtx4070",
        "--config.model.attention=xla",
        "--config.model.remat=none",
        "--config.model.loss_chunk=0",
    )
    assert wide.returncode == 1 and "DOES NOT FIT" in wide.stdout
    assert "Traceback" not in wide.stderr
