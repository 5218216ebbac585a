"""Prints the parameters, data, compute, memory and time of a run before it starts.

    gptjax plan rtx4070 --target=rtx4070 --compile

exits with status 1 if the run does not fit. Memory is estimated, in seconds; with --compile it is
that of the compiled step, in a minute (for a card that this machine lacks, with the extra
`target`).

    gptjax plan rtx4070 --target=h100 --devices=64 --hosts=8

adds what the devices exchange in a step, and predicts how much of their speed that leaves.

    gptjax plan --suggest --days=5 --target=rtx4070

proposes the size of the model, the batch and the steps for the given data and time.
"""

import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from configs.cli import define_config, run
from configs.validate import validate
from gptjax.plan import devices, planner, render, run_data, suggest
from gptjax.plan.cards import CARDS


def _main(config: ConfigDict) -> None:
    target, days = flags.FLAGS.target, flags.FLAGS.days
    if target != devices.LOCAL:  # leave a GPU of this machine alone
        jax.config.update("jax_platforms", "cpu")
    device = devices.find(target, flags.FLAGS.devices, flags.FLAGS.hosts)
    validate(config, device.count)
    data = run_data.find(config)
    if flags.FLAGS.suggest:
        speed, origin = suggest.sustained_flops(config, device, flags.FLAGS.tflops)
        suggestions, best = suggest.suggest(config, device, data, days=days, flops_per_sec=speed)
        speed_text = f"{speed / 1e12:.3g} TFLOP/s ({origin})"
        print(suggest.describe(suggestions, best, days=days, speed=speed_text))
        return
    plan = planner.make_plan(config, device, data, compile_step=flags.FLAGS.compile)
    print(render.describe(plan, full=True))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    define_config(default="rtx4070_best.py")
    flags.declare_key_flag("config")  # so that --help lists it
    flags.DEFINE_string(
        "target", devices.LOCAL, f"Device of the run: local, or one of {', '.join(CARDS)}."
    )
    flags.DEFINE_integer("devices", None, "Number of cards of that name; default 1.", lower_bound=1)
    flags.DEFINE_integer("hosts", None, "Of --devices; default one for 8 of them.", lower_bound=1)
    flags.DEFINE_bool("compile", False, "Read memory off the compiled step, in a minute.")
    flags.DEFINE_bool("suggest", False, "Propose model size, batch and steps for --days instead.")
    flags.DEFINE_float("days", 5.0, "Of training, for --suggest.")
    flags.DEFINE_float("tflops", None, "Model TFLOP/s of all devices, measured; for --suggest.")
    run(_main)
