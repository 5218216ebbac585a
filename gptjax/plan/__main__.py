"""What a run will be, before it starts; and does it fit?

    python -m gptjax.plan --config=configs/rtx4070.py --target=rtx4070 --compile

prints parameters, data, compute, memory and time, and ends with status 1 where the run does not
fit. Memory is estimated, in seconds; with --compile it is read off the compiled step, in a minute,
for a card that is not here with the extra `target`. Training prints the short form before each run.

    python -m gptjax.plan --suggest --days=5 --target=rtx4070

proposes the size of the model, the batch and the steps for the data and the time that there are.
Without --config, both are about configs/rtx4070_best.py.
"""

import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from configs.cli import define_config, run
from configs.validate import validate
from gptjax.plan import devices, planner, render, suggest


def main(
    config: ConfigDict,
    *,
    target_name: str,
    compile_step: bool = False,
    days: float | None = None,
    tflops: float | None = None,
) -> None:
    """Prints the plan in full, or sizes for so many `days`; status 1 where the run does not fit."""
    if target_name != devices.LOCAL:  # a GPU that is here has nothing to do with it
        jax.config.update("jax_platforms", "cpu")
    target = devices.find(target_name)
    validate(config, target.n_devices)
    data = planner.find_data(config)
    if days is not None:
        speed, origin = suggest.sustained_flops(config, target, tflops)
        found, best = suggest.suggest(config, target, data, days=days, flops_per_sec=speed)
        words = f"{speed / 1e12:.3g} TFLOP/s ({origin})"
        print(suggest.describe(found, best, days=days, speed=words))
        return
    vocab_size = config.tokenizer.vocab_size
    plan = planner.make_plan(config, target, data, vocab_size=vocab_size, compile_step=compile_step)
    print(render.describe(plan, full=True))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    define_config(default="rtx4070_best.py")
    flags.declare_key_flag("config")  # so that --help tells of it
    flags.DEFINE_string(
        "target", devices.LOCAL, f"Where it is to run: local, or one of {', '.join(devices.CARDS)}."
    )
    flags.DEFINE_bool("compile", False, "Read memory off the compiled step, in a minute.")
    flags.DEFINE_bool("suggest", False, "Propose model size, batch and steps for --days instead.")
    flags.DEFINE_float("days", 5.0, "Of training, for --suggest.")
    flags.DEFINE_float("tflops", None, "Model TFLOP/s of all devices, measured; for --suggest.")
    run(
        lambda config: main(
            config,
            target_name=flags.FLAGS.target,
            compile_step=flags.FLAGS.compile,
            days=flags.FLAGS.days if flags.FLAGS.suggest else None,
            tflops=flags.FLAGS.tflops,
        )
    )
