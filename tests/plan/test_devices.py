"""Known cards: their data sheets, budgets and names."""

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
def test_peak_flops_of_the_exact_device(kind, tflops):
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
def test_an_unlisted_device_has_no_known_peak(kind):
    assert peak_flops(kind) is None


def test_the_budget_of_a_card_is_the_share_that_jax_reserves(monkeypatch):
    for variable in devices._MEM_FRACTION:
        monkeypatch.delenv(variable, raising=False)
    assert devices.find("rtx4070").budget_bytes / 2**30 == pytest.approx(8.99, abs=0.005)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert devices.find("rtx4070").budget_bytes == int(0.9 * 12_877_561_856)


@pytest.mark.parametrize("text", ["0", "1.5", "75%"])
def test_an_invalid_memory_fraction_is_refused(monkeypatch, text):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", text)
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION"):
        devices.find("rtx3090")


def test_an_unknown_card_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"did you mean rtx4070\?"):
        devices.find("rtx-4070")


def test_the_local_cpu_has_memory_but_no_known_peak():
    device = devices.find("local")
    assert device.platform == "cpu" and device.is_local
    assert 2**28 < device.budget_bytes < 2**44
    assert device.peak_flops is None and device.bandwidth is None
