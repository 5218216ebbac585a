"""Table of the predicted weak scaling of a recipe on H100: arithmetic, nothing is run or measured.

    JAX_PLATFORMS=cpu python -m benchmarks.weak_scaling        # seconds

Each GPU computes 61,440 tokens a step, 5 micro-steps of 12 rows, whatever their number; 8 are in a
host. The formula is that of gptjax/plan/exchange.py.
"""

from absl import app

from configs import rtx4070
from gptjax.model import GPTConfig, flops_per_token
from gptjax.plan import devices, exchange, planner

_MICRO_STEPS = 5
MESHES = {
    "mesh.fsdp=1": (1, "step"),
    "mesh.fsdp=8": (8, "step"),
    "mesh.fsdp=8 mesh.gather=layer": (8, "layer"),
}


def predict(n_devices: int, fsdp: int, gather: str) -> list[float]:
    """Returns the efficiency with NVLink between all, and with each network between hosts."""
    device = devices.find("h100", n_devices)
    config = planner.resolve_auto(rtx4070.get_config(), device)
    config.mesh.fsdp, config.mesh.gather = fsdp, gather
    config.train.gradient_accumulation_steps = _MICRO_STEPS
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    least = exchange.minimum(config, model_config, n_devices)
    tokens = n_devices * config.train.batch_size * _MICRO_STEPS * model_config.block_size
    flops = tokens * flops_per_token(model_config)
    predicted = (
        exchange.efficiency(least, flops, device, network) for network in (None, *exchange.NETWORKS)
    )
    return [efficiency for efficiency in predicted if efficiency is not None]


def main(_: list[str]) -> None:
    names = ["NVLink between all", *(network.name for network in exchange.NETWORKS)]
    print(f"| predicted | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for n_devices in (8, 64, 512):
        for name, (fsdp, gather) in MESHES.items():
            cells = [f"{efficiency:.0%}" for efficiency in predict(n_devices, fsdp, gather)]
            print(f"| {n_devices} x H100, `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
