"""Variants of Muon against NumPy, written from their papers, in float64."""

import jax
import numpy as np
import optax
import pytest
from test_muon import conditioned, newton_schulz

from gptjax.optim.muon import COEFFICIENTS, decay, equal_neurons
from gptjax.optim.optimizer import param_labels


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_polar_express_brings_singular_values_nearer_to_one(shape):
    matrices = conditioned(np.random.default_rng(0), shape)
    transform = optax.contrib.scale_by_muon(
        ns_coeffs=COEFFICIENTS["polar_express"],
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers((1,), (2,)),
    )
    ours, _ = transform.update(np.float32(matrices), transform.init(np.float32(matrices)))
    for matrix, update in zip(matrices, ours, strict=True):
        theirs = newton_schulz(matrix, COEFFICIENTS["polar_express"])
        np.testing.assert_allclose(update, theirs, atol=2e-5)
        values = np.linalg.svd(update, compute_uv=False)
        assert np.all(np.abs(values - 1) < 0.13), values  # of Jordan's: 0.3


def test_neurons_of_an_update_are_equal():
    rng = np.random.default_rng(1)
    updates = rng.normal(size=(3, 2, 4, 6)) * np.geomspace(0.01, 1, 6)
    transform = equal_neurons(0.9)
    state = transform.init({"kernel": updates[0]})
    mean = np.zeros((2, 6))
    for t, update in enumerate(updates, 1):
        ours, state = transform.update({"kernel": np.float32(update)}, state)
        for layer in range(2):
            mean[layer] = 0.9 * mean[layer] + 0.1 * np.mean(update[layer] ** 2, axis=0)
            theirs = update[layer] / np.sqrt(mean[layer] / (1 - 0.9**t))
            theirs *= np.linalg.norm(update[layer]) / np.linalg.norm(theirs)
            np.testing.assert_allclose(ours["kernel"][layer], theirs, rtol=1e-5)


def test_cautious_decay_shrinks_what_the_update_shrinks():
    rng = np.random.default_rng(2)
    p, u = rng.normal(size=(2, 5, 5))
    for cautious in (False, True):
        transform = decay(0.3, cautious=cautious)
        ours, _ = transform.update(u, transform.init(p), p)
        expected = u + 0.3 * p * ((np.sign(u) == np.sign(p)) if cautious else 1)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_head_can_have_its_own_group():
    params = {"lm_head": np.zeros((4, 2)), "wte": np.zeros((4, 2))}
    assert set(jax.tree.leaves(param_labels(params))) == {"adamw"}
    assert param_labels(params, {"head"}) == {"lm_head": "head", "wte": "adamw"}
