"""The plan of a run: figures, text, and refusals."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, rtx4070
from configs.errors import UserError
from gptjax.plan import devices, memory, planner, preparation, render, run_data, step_cost
from gptjax.plan.check import refuse_unfit
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.hlo_traffic import Transfer
from gptjax.plan.memory import Memory
from gptjax.plan.preparation import Preparation
from gptjax.plan.run_data import Data

GIB = 2**30
PEAK = 2 * 256 * 46 * 2.475e9  # FLOP/s of an RTX 4070: multiply-adds, multiprocessors, clock


@pytest.fixture(scope="module")
def recipe():
    config = rtx4070.get_config()
    return planner.make_plan(config, devices.find("rtx4070"), run_data.find(config))


def test_figures_of_the_recipe(recipe):
    assert recipe.n_params == 32768 * 512 + 1024 * 512 + 12 * (12 * 512**2 + 2 * 512) + 512
    assert recipe.tokens_per_step == 491_520
    assert recipe.data.train_tokens + recipe.data.val_tokens == 730_000_000
    assert recipe.passes == pytest.approx(250_000 * 491_520 / (0.995 * 730e6))
    assert recipe.seconds_at(0.4) == pytest.approx(
        250_000 * 491_520 * recipe.flops_per_token / (0.4 * PEAK)
    )
    arithmetic, traffic, at_best = recipe.step_seconds
    # The model's attention is 6 matmuls of T x T. The step does 7, one of them again inside the
    # backward pass, but only the half that causality leaves.
    hidden = (12 - 7) * 12 * 512 * 1024
    assert arithmetic == pytest.approx(491_520 * (recipe.flops_per_token - hidden) / PEAK)
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


def test_deterministic_kernels_are_named(recipe):
    config = copy.deepcopy(recipe.config)
    config.deterministic = True
    text = render.describe(dataclasses.replace(recipe, config=config), full=False)
    assert "remat dots, deterministic: a step" in text
    assert "deterministic" not in render.describe(recipe, full=False)


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


def test_a_card_without_bfloat16_computes_in_float32(recipe):
    config = base.get_config()
    device = devices.find("t4")
    assert planner.resolve_auto(config, device).model.attention == "chunked"
    on_t4 = dataclasses.replace(recipe, device=device)
    assert any("have no bfloat16" in warning for warning in render.warnings(on_t4))
    in_float32 = dataclasses.replace(recipe.model_config, compute_dtype="float32")
    assert not any(
        "bfloat16" in warning
        for warning in render.warnings(dataclasses.replace(on_t4, model_config=in_float32))
    )


def test_several_cards_share_the_batch(recipe):
    data = Data(None, None, "not read")
    two = planner.make_plan(recipe.config, devices.find("rtx4070", 2), data)
    assert two.seconds_at(1) == pytest.approx(recipe.seconds_at(1) / 2)
    assert two.estimate.kept == recipe.estimate.kept // 2
    assert two.estimate.state == recipe.estimate.state


def compiled_step(**figures):
    zero = dict.fromkeys(("arguments", "outputs", "temporaries", "aliased", "evaluation"), 0)
    others = {"transfers": (), "collectives": (), "n_rematerialized": 0, "seconds": 1.0}
    return CompiledStep(**{**zero, **others, **figures})


def test_the_peak_is_that_of_training_or_evaluation(recipe):
    training = {
        "arguments": 5 * GIB,
        "outputs": 4 * GIB,
        "temporaries": 2 * GIB,
        "aliased": 3 * GIB,
    }
    assert compiled_step(**training).total == 8 * GIB
    compiled = compiled_step(**training, evaluation=9 * GIB)
    assert compiled.total == 9 * GIB
    plan = dataclasses.replace(recipe, compiled=compiled)
    assert not plan.fits and "in an evaluation 9.00" in render.describe(plan, full=True)


def test_the_largest_transfers_are_listed(recipe):
    transfers = [Transfer("fusion", f"jit(step)/op_{i}", 10, i * 10**9) for i in range(1, 8)]
    transfers += [Transfer("unnamed", "", 10, 10 * 10**9)]
    plan = dataclasses.replace(recipe, compiled=compiled_step(transfers=tuple(transfers)))
    text = render.describe(plan, full=True)
    assert "100.0 GB in 10 x 10,000.0 MB: unnamed" in text
    assert "70.0 GB in 10 x 7,000.0 MB: jit(step)/op_7" in text
    assert "op_4" in text and "op_3" not in text
    assert "As compiled, 380 GB go through memory" in text


def test_arithmetic_is_listed_by_dtype_at_its_own_peak(recipe):
    op = step_cost.Operation("dot_general", 1, int(PEAK), 0, "bfloat16")
    slow = dataclasses.replace(op, arithmetic="tf32")
    cost = dataclasses.replace(recipe.cost, operations=(op, op, slow))
    plan = dataclasses.replace(recipe, cost=cost)
    assert plan.step_seconds[0] == pytest.approx(4)  # TF32 at half the rate
    text = render.describe(plan, full=True)
    assert "2.00 s of bfloat16 arithmetic at 58.3 TFLOP/s" in text
    assert "and 2.00 s of tf32 arithmetic at 29.1 TFLOP/s" in text


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
        return compiled_step(arguments=total, n_rematerialized=n)


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
    compiled = compiled_step(n_rematerialized=7)
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
    data = run_data.find(debug_config)
    assert data == run_data.stored(debug_config, store)
    assert data.train_tokens == store.split("train").n_tokens


def test_data_of_a_source_that_is_not_prepared_is_estimated(debug_config, store, tmp_path):
    config = copy.deepcopy(debug_config)
    config.data.cache_dir = str(tmp_path / "stores")
    data = run_data.find(config)
    exact = store.split("train").n_tokens
    assert "estimated" in data.origin
    assert data.train_tokens == pytest.approx(exact, rel=0.15)
    assert not (tmp_path / "stores").exists()  # nothing was prepared


def test_what_preparing_takes_is_near_what_it_took(debug_config, store, tmp_path):
    config = copy.deepcopy(debug_config)
    config.data.cache_dir, config.data.prepare_workers = str(tmp_path / "stores"), 3
    (todo,) = run_data.find(config).unprepared
    splits = store.manifest["splits"].values()
    assert todo.text_bytes == pytest.approx(sum(split["bytes"] for split in splits), rel=0.01)
    assert todo.n_documents == sum(split["documents"] for split in splits)
    (line,) = preparation.describe(config, [todo, todo])
    seconds, gb_of_text, gb_of_disk = re.search(
        r"^about (\d+)s to encode (\S+) GB of text, 3 x 15 MB .*; (\S+) GB of disk, .* free$", line
    ).groups()
    assert int(seconds) == round(2 * todo.text_bytes / 45e6)
    assert float(gb_of_text) == pytest.approx(2 * todo.text_bytes / 1e9, abs=5e-5)
    files = [file.stat().st_size for file in store.path.glob("0*")]
    assert float(gb_of_disk) == pytest.approx(2 * sum(files) / 1e9, rel=0.15, abs=5e-5)
    assert run_data.find(debug_config).unprepared == []  # there is a store


def test_files_elsewhere_are_estimated_from_their_sizes(tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra remote")
    for name, size in {"a.parquet": 3_000_000, "b.jsonl.gz": 1_000_000}.items():
        fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", bytes(size))
    config = base.get_config()
    config.data.source, config.data.cache_dir = f"memory://{tmp_path.name}", str(tmp_path / "s")
    data = run_data.find(config)
    assert data.unprepared == [Preparation(7.2e6, 2400.0, 4e6)]  # 1.5 and 2.7 times the bytes
    assert data.train_tokens == pytest.approx(7.2e6 / 4.5 + 2400, rel=0.01)
    (line,) = preparation.describe(config, data.unprepared)
    assert line.startswith("a download of 0.0040 GB; ")
    assert not (tmp_path / "s").exists()


def test_the_size_of_missing_data_is_unknown(tmp_path):
    config = base.get_config()
    config.data.source = str(tmp_path / "none.parquet")
    data = run_data.find(config)
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
