"""A run on a mixture: stopped and resumed, evaluated by source, refused with another mixture."""

import copy
import json
import logging
import os
import re
import shutil

import pytest
from test_resume import assert_same_bits, metric_lines, recording  # noqa: F401

from configs.errors import UserError
from data_pipeline.prepare import prepare_all
from gptjax.checkpoint.compatibility import identity, incompatibilities
from gptjax.plan import devices, planner, render, run_data
from gptjax.report import sections
from gptjax.report.run_history import read


@pytest.fixture
def config(mixture_config, two_sources, tmp_path):
    """Its sources are this test's own, to be removed."""
    folder = shutil.copytree(os.path.dirname(two_sources[0]), tmp_path / "sources")
    pairs = [(str(folder / f"{n}.parquet"), w) for n, w in (("prose", 0.6), ("ends", 0.4))]
    mixture_config.data.mixture = tuple(pairs)
    mixture_config.data.mixture_schedule = ((5, (0, 1)),)
    mixture_config.eval.eval_interval = 4
    return mixture_config


def test_a_mixture_resumes_bit_for_bit_also_without_its_sources(
    recording,  # noqa: F811
    config,
    tmp_path,
    caplog,
):
    whole, whole_batches = recording(config)
    lines = metric_lines(config)
    (at_4,) = [line for line in lines if line["step"] == 4 and "val/loss" in line]
    assert at_4["val/loss"] == pytest.approx(
        0.6 * at_4["val/prose/loss"] + 0.4 * at_4["val/ends/loss"], rel=1e-12
    )
    assert at_4["val/prose/loss"] != at_4["val/ends/loss"]
    rows = {"prose": 5 * 8 * 3 / 5, "ends": 5 * 8 * 2 / 5 + 3 * 8}  # 8 a step
    stores = prepare_all(config)
    for name, n in rows.items():
        of_an_epoch = -(-stores.sources[name].split("train").n_tokens // 32)
        assert lines[-2][f"data/{name}/epoch"] == n / of_an_epoch
    assert lines[-2]["data/epoch"] == max(lines[-2][f"data/{name}/epoch"] for name in rows)
    table = sections.validation(read(tmp_path / "run"))
    assert table.head[-2:] == ["val loss of prose", "val loss of ends"]
    assert table.rows[0][-1] == f"{at_4['val/ends/loss']:.4f}"

    broken = copy.deepcopy(config)
    broken.workdir = str(tmp_path / "broken")
    broken.train.max_iters = 6  # in the second phase
    _, batches = recording(broken)
    broken.train.max_iters = 8
    caplog.set_level(logging.INFO, "gptjax.train.trainer")
    shutil.rmtree(tmp_path / "sources")
    state, more = recording(broken)
    assert batches | more == whole_batches
    assert_same_bits(state, whole)
    assert "resumes from what its checkpoint names" in caplog.text
    assert re.search(r"ends: 62.50% of the tokens, from [\d,]+ \(0.1 passes\)", caplog.text)

    broken.data.mixture = broken.data.mixture[:1]
    broken.data.mixture_schedule = ()
    with pytest.raises(UserError, match="there is no file"):
        recording(broken)


@pytest.fixture
def resumes(config):
    """Returns why a run that stopped after step 6 cannot resume with other keys of `data`."""
    saved = json.loads(json.dumps(identity(config, prepare_all(config))))

    def resumes(**keys):
        changed = copy.deepcopy(config)
        changed.data.update(keys)
        return incompatibilities({**saved, "step": 6}, identity(changed, prepare_all(changed)))

    return resumes


def test_only_the_mixture_of_the_steps_done_must_stay(config, resumes, store):
    mixture = config.data.mixture
    assert resumes() == []
    assert resumes(mixture_schedule=((5, (0, 1)), (6, (1, 1)))) == []
    for schedule, words in (
        ((), "from step 5: [0, 1] saved, None now"),
        (((4, (0, 1)),), "from step 4: None saved, [0, 1] now"),
        (((5, (1, 1)),), "from step 5.0: 0 saved, 1 now"),
        (((0, (1, 1)), (5, (0, 1))), "from step 0.0: 3 saved, 1 now"),
    ):
        problems = resumes(mixture_schedule=schedule)
        assert any(f"weights of the sources in the steps done.{words}" in p for p in problems)
    problems = resumes(mixture=mixture[::-1], mixture_schedule=((0, (2, 3)), (5, (1, 0))))
    assert any(problem.startswith("store_hash") for problem in problems)
    single = resumes(mixture=mixture[:1], mixture_schedule=())
    assert any("weights of the sources" in problem for problem in single)
    assert any(problem.startswith("store_hash") for problem in single)
    saved = {**identity(config, store), "step": 6}  # of a single source
    del saved["mixture"]  # as before there were mixtures
    assert incompatibilities(json.loads(json.dumps(saved)), identity(config, store)) == []


def test_the_plan_knows_each_source(config, tmp_path):
    config.data.cache_dir = str(tmp_path / "stores")  # nothing is prepared there
    device = devices.local()
    estimated = run_data.find(config)
    stores = prepare_all(config)
    data = run_data.find(config)
    assert data == run_data.stored(config, stores)
    assert list(data.sources) == list(estimated.sources) == ["prose", "ends"]
    assert [part.share for part in data.parts.values()] == [24 / 64, 40 / 64]
    for name, (share, known) in data.sources.items():
        assert known.train_tokens == stores.sources[name].split("train").n_tokens
        assert known.val_tokens == stores.sources[name].split("val").n_tokens
        guess = estimated.sources[name].data.train_tokens
        assert 0.4 < known.train_tokens / guess < 2.5 and share
    config.train.max_iters = 1000
    config.data.mixture_schedule = ((500, (0, 1)),)
    plan = planner.make_plan(config, device, run_data.find(config))
    ends = stores.sources["ends"].split("train").n_tokens
    assert plan.passes == pytest.approx(0.7 * 1000 * 256 / ends)  # 0.4, then all
    text = render.describe(plan, full=True)
    assert f"ends: 70.00% of the tokens, from {ends:,} ({plan.passes:.1f} passes)" in text
    assert f"reads its {ends:,} tokens of ends {plan.passes:.0f} times" in text
    assert "validation split of prose has only" in text
    shutil.rmtree(tmp_path / "sources")
    assert run_data.find(config).train_tokens is None
