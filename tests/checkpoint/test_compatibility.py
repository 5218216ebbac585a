"""Which run can resume from which checkpoint, and how a refusal reads."""

import copy
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, debug
from configs.validate import leaves
from gptjax.checkpoint import compatibility
from gptjax.checkpoint.compatibility import changes, incompatibilities
from gptjax.optim.schedules import learning_rate_schedule


def get(config: ConfigDict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


def put(config: ConfigDict, key: str, value) -> ConfigDict:
    *group, leaf = key.split(".")
    (config[group[0]] if group else config)[leaf] = value
    return config


@pytest.fixture
def run(store):
    """Returns a run's identity, as a checkpoint keeps it, from changes to configs/debug.py."""

    def run(**changed):
        config = debug.get_config()
        for key, value in changed.items():
            put(config, key.replace("__", "."), value)
        return json.loads(json.dumps(compatibility.identity(config, store)))

    return run


def at(step, saved):
    return {**saved, "step": step}


GROUPS = {
    name: getattr(compatibility, name)
    for name in ("FIXED", "SCHEDULE", "TEACHER", "BATCH", "DATA", "FREE")
}


def test_every_key_has_its_place():
    """A new key of configs/base.py belongs in one of the lists of compatibility.py."""
    keys = leaves(base.get_config())
    classified = [key for group in GROUPS.values() for key in group]
    assert sorted(classified) == sorted(keys)  # each once, and no more


OTHER = {"auto": "bfloat16", "none": "full", "adamw": "muon", "stop": "keep_before"}


def another(key):
    """The value of a key, and another one of the same type."""
    group = config = debug.get_config()
    *groups, leaf = key.split(".")
    for name in groups:
        group = group[name]
    value = get(config, key)
    if value is None:
        return value, {bool: True, int: 7, float: 2.5}[group.get_type(leaf)]
    if isinstance(value, bool):
        return value, not value
    if isinstance(value, str):
        return value, OTHER.get(value, value + "-other")
    if isinstance(value, tuple):
        return value, (*value, "Another ")
    return value, value * 2 + 1


@pytest.mark.parametrize("key", sorted(compatibility.FIXED))
def test_a_fixed_key_is_refused_with_both_values(run, key):
    old, new = another(key)
    saved, current = at(8, run()), run(**{key: new})
    assert incompatibilities(saved, current) == [f"{key}: {old} saved, {new} now"]


@pytest.mark.parametrize(
    "key", sorted(compatibility.FREE | compatibility.DATA | compatibility.TEACHER)
)
def test_a_free_key_may_change_and_is_listed(run, key):
    """The keys of data are free as long as the content of the store is the same."""
    old, new = another(key)
    saved, current = at(8, run()), run(**{key: new})
    assert incompatibilities(saved, current) == []
    assert changes(saved, current) and all(text.startswith(key) for text in changes(saved, current))


def test_without_a_change_nothing_is_listed(run):
    assert incompatibilities(at(8, run()), run()) == changes(at(8, run()), run()) == []


def test_different_stores_tokenizers_and_settings_are_listed_together(run):
    saved = at(8, run())
    current = run(seed=7, model__n_layer=3, optim__beta2=0.5, optim__learning_rate=2e-2)
    current["store_hash"], current["tokenizer_hash"] = "abc", "def"
    current["store"]["settings"]["val_fraction"] = 0.5
    problems = "\n".join(incompatibilities(saved, current))
    for words in (
        "seed: 1337 saved, 7 now",
        "model.n_layer: 2 saved, 3 now",
        "optim.beta2: 0.99 saved, 0.5 now",
        "optim.learning_rate: 0.01 saved, 0.02 now",
        "so the learning rate of 8 of the 8 steps done would have been different: of step 1",
        "tokenizer_hash: ",
        "store_hash: ",
        "data.settings.val_fraction: 0.05 saved, 0.5 now",
    ):
        assert words in problems, words
    assert "cannot be made longer" not in problems


def test_the_same_batch_may_be_split_differently(run):
    saved = at(8, run(train__batch_size=4, train__gradient_accumulation_steps=4))
    assert (
        incompatibilities(saved, run(train__batch_size=8, train__gradient_accumulation_steps=2))
        == []
    )
    assert incompatibilities(
        saved, run(train__batch_size=8, train__gradient_accumulation_steps=4)
    ) == ["rows a step (train.batch_size x train.gradient_accumulation_steps): 16 saved, 32 now"]
    assert incompatibilities(
        saved, run(train__batch_size=16, train__gradient_accumulation_steps=1)
    ) == ["train.gradient_accumulation_steps > 1: True saved, False now"]


def test_a_different_environment_is_listed(run):
    saved = at(8, run())
    saved["environment"] |= {"jax": "0.1", "devices": "2 x gpu"}
    current = run()
    assert incompatibilities(saved, current) == []
    assert changes(saved, current)[0].startswith("jax: 0.1 saved, ")
    assert (
        changes(saved, current)[1]
        == f"devices: 2 x gpu saved, {current['environment']['devices']} now"
    )


def test_a_checkpoint_that_lacks_a_key_has_its_default(run):
    saved = at(8, run())
    del saved["config"]["model"]["dropout"]
    saved["config"]["model"]["of_old"] = 1
    assert incompatibilities(saved, run()) == []
    problems = incompatibilities(saved, run(model__dropout=0.5))
    assert problems == ["model.dropout: 0.0 saved, 0.5 now"]


# Schedules of configs/debug.py: cosine over 20 steps, warm-up 2; wsd decays over the last 5.
WSD = {"optim__schedule": "wsd"}
AGAIN = {"train__max_iters": 40, "optim__rewarm_at": (20,)}
SHORT = {"train__row_lengths": ((4, 16),)}
LATER = {"train__later_tokens": (0.5,), "train__later_tokens_iters": 5}


@pytest.mark.parametrize(
    ("step", "saved", "current", "words"),
    [
        # Within the schedule a run may be longer or shorter.
        (4, {"train__max_iters": 4}, {"train__max_iters": 20}, None),
        (8, {"train__max_iters": 20}, {"train__max_iters": 9}, None),
        # The past of both is the warm-up.
        (2, {}, {"optim__lr_decay_iters": 40}, None),
        (2, {}, WSD, None),
        # A cosine that has begun to fall.
        (8, {}, {"optim__lr_decay_iters": 40}, "cosine that has begun to fall"),
        (20, {}, {"train__max_iters": 40, "optim__lr_decay_iters": 40}, "begun to fall"),
        (20, {}, {"train__max_iters": 40}, 'optim.rewarm_at="(20,)"'),
        (8, {}, {"optim__lr_decay_iters": 10}, "would have been different"),
        (8, {}, {"optim__min_lr": 1e-5}, "optim.min_lr: 0.0003 saved, 1e-05 now"),
        (8, {}, WSD, "optim.schedule: cosine saved, wsd now"),
        # Made longer explicitly, from the checkpoint or any later step.
        (20, {}, {"train__max_iters": 40, "optim__rewarm_at": (20,)}, None),
        (8, {}, {"train__max_iters": 40, "optim__rewarm_at": (8,)}, None),
        (8, {}, {"train__max_iters": 40, "optim__rewarm_at": (20,)}, None),
        (8, {}, {"train__max_iters": 40, "optim__rewarm_at": (7,)}, "rewarm_at="),
        (30, AGAIN, AGAIN | {"seed": 1337}, None),
        (30, AGAIN, {**AGAIN, "train__max_iters": 60}, 'optim.rewarm_at="(20, 40)"'),
        (30, AGAIN, {"train__max_iters": 60, "optim__rewarm_at": (20, 40)}, None),
        (40, AGAIN, {"train__max_iters": 60, "optim__rewarm_at": (20, 40)}, None),
        (30, AGAIN, {"train__max_iters": 40}, "of 10 of the 30 steps done"),
        # Planned to continue at min_lr from the beginning.
        (30, {"train__max_iters": 40}, {"train__max_iters": 40, "seed": 1337}, None),
        # wsd: its length and decay may change until the decay begins.
        (15, WSD, {**WSD, "train__max_iters": 1000}, None),
        (10, WSD, {**WSD, "train__max_iters": 15}, None),
        (15, WSD, {**WSD, "optim__wsd_decay_iters": 3, "optim__min_lr": 1e-5}, None),
        (15, WSD, {**WSD, "optim__lr_decay_iters": 7}, None),  # wsd does not use it
        (17, WSD, {**WSD, "train__max_iters": 1000}, "until its decay begins, at step 15"),
        (20, WSD, {**WSD, "train__max_iters": 40}, "until its decay begins, at step 15"),
        (16, WSD, {**WSD, "optim__learning_rate": 2e-2}, "16 of the 16 steps done"),
        (12, WSD, {}, "optim.schedule: wsd saved, cosine now"),
        (16, WSD, {**WSD, "optim__wsd_fall": "linear"}, None),
        (17, WSD, {**WSD, "optim__wsd_fall": "linear"}, "of 1 of the 17 steps done"),
        # What only the first steps have.
        (8, {}, {"train__row_lengths": ((4, 16),)}, "so the pieces of a row of 4 of the 8 steps"),
        (8, SHORT, {"train__row_lengths": ((4, 16), (8, 8))}, "of step 5, 1 saved, 4 now"),
        (4, SHORT, {"train__row_lengths": ((4, 16), (8, 8))}, None),
        (8, LATER, {**LATER, "train__later_tokens": (0.5, 0.5)}, "weight of token 3 ahead"),
        (8, LATER, {**LATER, "train__later_tokens": ()}, "weight of token 2 ahead of 5 of the 8"),
        (8, {**LATER, "train__later_tokens": (0.5, 0.0)}, LATER, None),
    ],
)
def test_the_learning_rate_of_the_steps_done_must_stay(run, step, saved, current, words):
    problems = incompatibilities(at(step, run(**saved)), run(**current))
    if words is None:
        assert problems == []
        assert changes(at(step, run(**saved)), run(**current)) or saved == {
            k: v for k, v in current.items() if k != "seed"
        }
    else:
        assert words in "\n".join(problems)
        hint = "begun to fall" in words or "rewarm_at=" in words
        assert ("schedule=wsd" in "\n".join(problems)) == hint


def test_an_allowed_change_keeps_the_rates_of_the_steps_done():
    """The rule itself, on random pairs of configurations."""
    rng = np.random.default_rng(0)
    allowed = 0
    for _ in range(25):
        configs = []
        for _ in range(2):
            config = debug.get_config()
            config.optim.schedule = str(rng.choice(["cosine", "wsd"]))
            config.optim.wsd_decay_iters = int(rng.choice([2, 5]))
            config.train.max_iters = int(rng.choice([10, 20]))
            config.optim.warmup_iters = int(rng.choice([1, 2]))
            configs.append(config)
        step = int(rng.integers(1, 20))
        old, new = configs
        problems = compatibility._schedule_problems(copy.deepcopy(old), copy.deepcopy(new), step)
        schedules = [learning_rate_schedule(c.optim, c.train.max_iters) for c in configs]
        rates = [[float(schedule(s)) for s in range(step)] for schedule in schedules]
        same = np.allclose(*rates, rtol=1e-6)
        allowed += not problems
        assert same or problems
        assert not problems or not same or new.train.max_iters > old.train.max_iters
    assert 3 < allowed < 22


def test_the_muon_rate_of_a_run_from_before_its_units_keeps_its_meaning(run):
    muon = {"optim__optimizer": "muon"}
    saved = copy.deepcopy(at(8, run(**muon)))
    del saved["config"]["optim"]["muon_scale"]
    assert incompatibilities(saved, run(**muon)) == []
    spectral = run(**muon, optim__muon_scale="spectral")
    assert incompatibilities(saved, spectral) == ["optim.muon_scale: rms saved, spectral now"]


def test_the_muon_rate_and_the_weight_decay_of_the_steps_done_must_stay(run):
    muon = {"optim__optimizer": "muon"}
    saved = at(8, run(**muon))
    problems = "\n".join(incompatibilities(saved, run(**muon, optim__muon_learning_rate=0.5)))
    assert "optim.muon_learning_rate: 0.002 saved, 0.5 now" in problems
    assert "so the muon learning rate of 8 of the 8 steps done" in problems
    problems = "\n".join(incompatibilities(saved, run(**muon, optim__weight_decay=0.5)))
    assert (
        "so the weight decay of 8 of the 8 steps done would have been different: of step 1"
        in problems
    )
    assert incompatibilities(at(0, saved), run(**muon, optim__weight_decay=0.5)) == []
    # A rate that is not used decides nothing.
    assert incompatibilities(at(8, run()), run(optim__muon_learning_rate=0.5)) == []


def test_a_linear_weight_decay_keeps_the_length_of_a_run(run):
    linear = {**WSD, "optim__weight_decay_schedule": "linear"}
    saved = at(8, run(**linear))
    assert incompatibilities(saved, run(**linear)) == []
    problems = "\n".join(incompatibilities(saved, run(**linear, train__max_iters=40)))
    assert "train.max_iters: 20 saved, 40 now" in problems
    assert (
        "so the weight decay of 7 of the 8 steps done would have been different: of step 2"
        in problems
    )
    assert "such a run keeps its length" in problems
