"""Which run may go on from which checkpoint, and how a refusal reads."""

import copy
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, debug
from configs.validate import leaves
from gptjax.checkpoint import compatibility
from gptjax.checkpoint.compatibility import changes, incompatibilities
from gptjax.optim.schedules import schedule


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
    """Makes the identity of a run from changes to configs/debug.py, as a checkpoint keeps it."""

    def run(**changed):
        config = debug.get_config()
        for key, value in changed.items():
            put(config, key.replace("__", "."), value)
        return json.loads(json.dumps(compatibility.identity(config, store)))

    return run


def at(step, there):
    return {**there, "step": step}


GROUPS = {
    name: getattr(compatibility, name) for name in ("FIXED", "SCHEDULE", "BATCH", "DATA", "FREE")
}


def test_every_key_has_its_place():
    """A new key of configs/base.py needs one of the lists of compatibility.py: think which."""
    keys = leaves(base.get_config())
    classified = [key for group in GROUPS.values() for key in group]
    assert sorted(classified) == sorted(keys)  # each once, and no other


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
    there, here = at(8, run()), run(**{key: new})
    assert incompatibilities(there, here) == [f"{key}: {old} there, {new} here"]


@pytest.mark.parametrize("key", sorted(compatibility.FREE | compatibility.DATA))
def test_a_free_key_may_change_and_is_told(run, key):
    """Of data, what matters is the store: the same one may lie elsewhere, or be made otherwise."""
    old, new = another(key)
    there, here = at(8, run()), run(**{key: new})
    assert incompatibilities(there, here) == []
    assert changes(there, here) and all(text.startswith(key) for text in changes(there, here))


def test_nothing_changed_nothing_told(run):
    assert incompatibilities(at(8, run()), run()) == changes(at(8, run()), run()) == []


def test_another_store_tokenizer_and_all_else_are_listed_together(run):
    there = at(8, run())
    here = run(seed=7, model__n_layer=3, optim__beta2=0.5, optim__learning_rate=2e-2)
    here["store_hash"], here["tokenizer_hash"] = "abc", "def"
    here["store"]["settings"]["val_fraction"] = 0.5
    found = "\n".join(incompatibilities(there, here))
    for words in (
        "seed: 1337 there, 7 here",
        "model.n_layer: 2 there, 3 here",
        "optim.beta2: 0.99 there, 0.5 here",
        "optim.learning_rate: 0.01 there, 0.02 here",
        "so the learning rate of 8 of the 8 steps done would have been another: of step 1",
        "tokenizer_hash: ",
        "store_hash: ",
        "data.settings.val_fraction: 0.05 there, 0.5 here",
    ):
        assert words in found, words
    assert "cannot be made longer" not in found


def test_the_same_batch_may_be_cut_otherwise(run):
    there = at(8, run(train__batch_size=4, train__gradient_accumulation_steps=4))
    assert (
        incompatibilities(there, run(train__batch_size=8, train__gradient_accumulation_steps=2))
        == []
    )
    assert incompatibilities(
        there, run(train__batch_size=8, train__gradient_accumulation_steps=4)
    ) == ["train.batch_size x train.gradient_accumulation_steps: 16 rows a step there, 32 here"]
    assert incompatibilities(
        there, run(train__batch_size=16, train__gradient_accumulation_steps=1)
    ) == ["train.gradient_accumulation_steps > 1: True there, False here"]


def test_another_environment_is_told(run):
    there = at(8, run())
    there["environment"] |= {"jax": "0.1", "devices": "2 x gpu"}
    here = run()
    assert incompatibilities(there, here) == []
    assert changes(there, here)[0].startswith("jax: 0.1 there, ")
    assert (
        changes(there, here)[1] == f"devices: 2 x gpu there, {here['environment']['devices']} here"
    )


def test_a_checkpoint_that_lacks_a_key_has_its_default(run):
    there = at(8, run())
    del there["config"]["model"]["dropout"]
    there["config"]["model"]["of_old"] = 1
    assert incompatibilities(there, run()) == []
    found = incompatibilities(there, run(model__dropout=0.5))
    assert found == ["model.dropout: 0.0 there, 0.5 here"]


# Schedules of configs/debug.py: cosine over 20 steps, warm-up 2; wsd decays over the last 5.
WSD = {"optim__schedule": "wsd"}


@pytest.mark.parametrize(
    ("step", "there", "here", "words"),
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
        (20, {}, {"train__max_iters": 40}, "begun to fall"),
        (8, {}, {"optim__lr_decay_iters": 10}, "would have been another"),
        (8, {}, {"optim__min_lr": 1e-5}, "optim.min_lr: 0.0003 there, 1e-05 here"),
        (8, {}, WSD, "optim.schedule: cosine there, wsd here"),
        # It was to go on at min_lr from the beginning.
        (30, {"train__max_iters": 40}, {"train__max_iters": 40, "seed": 1337}, None),
        # wsd: free to grow, shrink or fall otherwise until it falls.
        (15, WSD, {**WSD, "train__max_iters": 1000}, None),
        (10, WSD, {**WSD, "train__max_iters": 15}, None),
        (15, WSD, {**WSD, "optim__wsd_decay_iters": 3, "optim__min_lr": 1e-5}, None),
        (15, WSD, {**WSD, "optim__lr_decay_iters": 7}, None),  # it has no say there
        (17, WSD, {**WSD, "train__max_iters": 1000}, "until its decay begins, here at step 15"),
        (20, WSD, {**WSD, "train__max_iters": 40}, "until its decay begins, here at step 15"),
        (16, WSD, {**WSD, "optim__learning_rate": 2e-2}, "16 of the 16 steps done"),
        (12, WSD, {}, "optim.schedule: wsd there, cosine here"),
    ],
)
def test_the_past_of_the_learning_rate_must_stay(run, step, there, here, words):
    found = incompatibilities(at(step, run(**there)), run(**here))
    if words is None:
        assert found == []
        assert changes(at(step, run(**there)), run(**here)) or there == {
            k: v for k, v in here.items() if k != "seed"
        }
    else:
        assert words in "\n".join(found)
        assert ("schedule=wsd" in "\n".join(found)) == ("begun to fall" in words)


def test_what_is_allowed_gives_the_same_rates_as_from_the_beginning():
    """The rule itself, on random pairs: allowed means that no step done had another rate."""
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
        found = compatibility._schedule_refusals(copy.deepcopy(old), copy.deepcopy(new), step)
        rates = [
            [float(schedule(c.optim, c.train.max_iters)(s)) for s in range(step)] for c in configs
        ]
        same = np.allclose(*rates, rtol=1e-6)
        allowed += not found
        assert same or found
        assert not found or not same or new.train.max_iters > old.train.max_iters
    assert 3 < allowed < 22


def test_what_muon_and_the_decay_were_stays(run):
    muon = {"optim__optimizer": "muon"}
    there = at(8, run(**muon))
    found = "\n".join(incompatibilities(there, run(**muon, optim__muon_learning_rate=0.5)))
    assert "optim.muon_learning_rate: 0.002 there, 0.5 here" in found
    assert "so the muon learning rate of 8 of the 8 steps done" in found
    found = "\n".join(incompatibilities(there, run(**muon, optim__weight_decay=0.5)))
    assert (
        "so the weight decay of 8 of the 8 steps done would have been another: of step 1" in found
    )
    assert incompatibilities(at(0, there), run(**muon, optim__weight_decay=0.5)) == []
    # A rate that is not used decides nothing.
    assert incompatibilities(at(8, run()), run(optim__muon_learning_rate=0.5)) == []


def test_a_linear_weight_decay_keeps_the_length_of_a_run(run):
    linear = {**WSD, "optim__weight_decay_schedule": "linear"}
    there = at(8, run(**linear))
    assert incompatibilities(there, run(**linear)) == []
    found = "\n".join(incompatibilities(there, run(**linear, train__max_iters=40)))
    assert "train.max_iters: 20 there, 40 here" in found
    assert (
        "so the weight decay of 7 of the 8 steps done would have been another: of step 2" in found
    )
    assert "such a run keeps its length" in found
