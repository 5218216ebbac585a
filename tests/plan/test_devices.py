"""Cards, and what they are looked up by."""

import pytest

from configs.errors import UserError
from gptjax.plan import devices
from gptjax.plan.devices import CARDS, peak_flops

# Multiply-adds of a multiprocessor's tensor cores a clock, bfloat16 with float32 sums, dense:
# NVIDIA's whitepapers of GA100, GA102, AD102 and GH100.
FMA_PER_CLOCK = {(8, 0): 1024, (8, 6): 256, (8, 9): 256, (9, 0): 2048}


@pytest.mark.parametrize("name", CARDS)
def test_the_peak_is_that_of_its_tensor_cores(name):
    card = CARDS[name]
    clocked = 2 * FMA_PER_CLOCK[card.compute_capability] * card.n_cores * card.clock_ghz * 1e9
    assert card.peak_tflops * 1e12 == pytest.approx(clocked, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 4070 SUPER", 71.0),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA H100 80GB HBM3", 989),
    ],
)
def test_peak_flops_is_that_of_the_very_device(kind, tflops):
    assert peak_flops(kind) == tflops * 1e12


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "NVIDIA GeForce RTX 4070 Laptop GPU",  # slower than the card of that name
        "NVIDIA GeForce RTX 4080 SUPER",  # faster
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 PCIe",
    ],
)
def test_a_device_that_is_not_listed_has_no_peak(kind):
    assert peak_flops(kind) is None


def test_a_card_has_the_share_of_its_memory_that_jax_takes(monkeypatch):
    for variable in devices._MEM_FRACTION:
        monkeypatch.delenv(variable, raising=False)
    assert devices.find("rtx4070").budget_bytes / 2**30 == pytest.approx(8.99, abs=0.005)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert devices.find("rtx4070").budget_bytes == int(0.9 * 12_877_561_856)


@pytest.mark.parametrize("text", ["0", "1.5", "75%"])
def test_a_share_that_is_none_is_told(monkeypatch, text):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", text)
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION"):
        devices.find("rtx3090")


def test_an_unknown_card_is_told_its_nearest():
    with pytest.raises(UserError, match=r"did you mean rtx4070\?"):
        devices.find("rtx-4070")


def test_the_local_cpu_has_memory_but_no_known_peak():
    target = devices.find("local")
    assert target.platform == "cpu" and target.is_local
    assert 2**28 < target.budget_bytes < 2**44
    assert target.peak_flops is None and target.bandwidth is None
