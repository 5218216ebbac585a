"""Known cards: their data sheets, budgets and names."""

import pytest

from configs.errors import UserError
from gptjax.plan import devices
from gptjax.plan.cards import CARDS


class FakeDevice:
    """A GPU as JAX describes it."""

    platform = "gpu"

    def __init__(self, device_kind, compute_capability="8.9", core_count=20, memory=None):
        self.device_kind, self.core_count = device_kind, core_count
        self.compute_capability, self.memory = compute_capability, memory

    def memory_stats(self):
        return self.memory


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Returns a function that puts an nvidia-smi with this output into PATH."""

    def install(output):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        devices._driver_value.cache_clear()

    yield install
    devices._driver_value.cache_clear()


# TFLOP/s of NVIDIA's whitepapers and data sheets: bfloat16 in tensor cores with float32 sums,
# dense; TF32; float32 outside of them.
@pytest.mark.parametrize(
    ("name", "bfloat16", "tf32", "float32"),
    [
        ("rtx2080ti", 13.4, 13.4, 13.4),  # its tensor cores have neither
        ("t4", 8.1, 8.1, 8.1),
        ("rtx3060-12gb", 25.5, 12.7, 12.7),
        ("rtx3070", 40.6, 20.3, 20.3),
        ("rtx3080-10gb", 59.5, 29.8, 29.8),
        ("rtx3090", 71.2, 35.6, 35.6),
        ("rtx4070", 58.3, 29.1, 29.1),
        ("rtx4070s", 71.0, 35.5, 35.5),
        ("rtx4070ti", 80.2, 40.1, 40.1),
        ("rtx4070tis", 88.2, 44.1, 44.1),
        ("rtx4080", 97.5, 48.7, 48.7),
        ("rtx4090", 165.2, 82.6, 82.6),
        ("rtx5080-laptop", 70.3, 35.1, 35.1),
        ("rtx5070", 61.7, 30.9, 30.9),
        ("rtx5080", 112.6, 56.3, 56.3),
        ("rtx5090", 209.5, 104.8, 104.8),
        ("a10", 125, 62.5, 31.2),
        ("l4", 121, 60.5, 30.3),
        ("a100-80gb", 312, 156, 19.5),
        ("h100", 989.4, 494.7, 61.8),  # its data sheet has 67 for float32, at a higher clock
    ],
)
def test_peaks_are_those_of_the_data_sheet(name, bfloat16, tf32, float32):
    tflops = {kind: flops / 1e12 for kind, flops in devices.find(name).peaks.items()}
    expected = {"bfloat16": bfloat16, "tf32": tf32, "float32": float32}
    assert tflops == pytest.approx(expected, rel=0.005, abs=0.05)


def test_kinds_are_unique_and_numbers_plausible():
    assert len({card.device_kind for card in CARDS.values()}) == len(CARDS)
    for card in CARDS.values():
        assert card.peaks and 1 < card.clock_ghz < 3 and 4096 < card.memory_mib < 200_000
        # A card has 40 to 330 FLOPs a byte: a slip of a digit leaves that range.
        assert 15 < card.peaks["bfloat16"] / 1e9 / card.bandwidth_gb_s < 500, card


@pytest.mark.parametrize("name", CARDS)
def test_a_listed_device_has_the_peak_of_its_card(name):
    device = FakeDevice(CARDS[name].device_kind, "1.0", 1)
    assert devices.peak_flops(device) == CARDS[name].peaks["bfloat16"]


@pytest.mark.parametrize("kind", ["NVIDIA GeForce RTX 4070 Laptop", "NVIDIA H100 PCIe"])
def test_an_unlisted_device_has_the_peak_of_its_chip_at_the_drivers_clock(nvidia_smi, kind):
    nvidia_smi(f"NVIDIA GeForce RTX 4090, 9999\n{kind}, 2000")
    flops = 2 * (256 if "GeForce" in kind else 512) * 20 * 2000e6
    assert devices.peak_flops(FakeDevice(kind)) == flops


def test_nvidia_smi_is_asked_once(nvidia_smi, tmp_path):
    nvidia_smi("Some GPU, 1000")
    flops = devices.peak_flops(FakeDevice("Some GPU"))
    (tmp_path / "nvidia-smi").unlink()
    assert devices.peak_flops(FakeDevice("Some GPU")) == flops > 0


def test_without_a_clock_or_a_known_chip_the_peak_is_unknown(nvidia_smi):
    nvidia_smi("Some GPU, [N/A]")
    assert devices._peaks(FakeDevice("Some GPU")) == (
        {},
        "n/a: not in the table of cards, and nvidia-smi names no clock",
    )
    nvidia_smi("Some GPU, 1000")
    flops, reason = devices._peaks(FakeDevice("Some GPU", "17.3"))
    assert flops == {} and "17.3" in reason


def test_memory_that_jax_does_not_count(monkeypatch, nvidia_smi):
    """As with XLA_PYTHON_CLIENT_ALLOCATOR=platform."""

    def budget(device):
        monkeypatch.setattr(devices.jax, "devices", lambda: [device])
        return devices.local().budget_bytes

    nvidia_smi("Some GPU, 8192")
    assert budget(FakeDevice("Some GPU")) == 8192 * 2**20
    assert budget(FakeDevice("NVIDIA GeForce RTX 4070")) == 12281 * 2**20
    assert budget(FakeDevice("Some GPU", memory={"bytes_limit": 12345})) == 12345
    nvidia_smi("")
    assert budget(FakeDevice("Some GPU")) >= 2**50


def test_the_number_of_cards():
    one, four = devices.find("rtx3090"), devices.find("rtx3090", 4)
    assert (one.count, four.count) == (1, 4)
    assert one.budget_bytes == four.budget_bytes  # of each
    with pytest.raises(UserError, match="--devices=0"):
        devices.find("rtx3090", 0)
    with pytest.raises(UserError, match="--target"):
        devices.find("local", 99)


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
    assert device.peak_reason.startswith("n/a")
