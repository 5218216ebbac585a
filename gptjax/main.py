"""Trains a model, or continues a run: `python -m gptjax.main --config=configs/quickstart.py`."""

import logging

import jax
from absl import flags
from ml_collections import ConfigDict

from configs import cli
from gptjax.step.compilation_cache import keep_compiled
from gptjax.train import train_and_evaluate
from gptjax.train.require_gpu import require_gpu
from gptjax.train.step_trace import parse_steps

_log = logging.getLogger(__name__)


def main(config: ConfigDict, traced_steps: range = range(0)) -> None:
    """Trains with `config` on the devices that JAX finds; see `train_and_evaluate`."""
    keep_compiled(config.compilation_cache_dir)
    require_gpu(config)
    devices = jax.devices()
    _log.info("JAX %s on %d x %s.", jax.__version__, len(devices), devices[0].device_kind)
    train_and_evaluate(config, traced_steps)
    _log.info(
        'Done. To generate text: python -m gptjax.generate --workdir=%s --prompt="..."',
        config.workdir,
    )


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("profile", "", "First and last step of a trace in workdir/profile: 10:13.")
    cli.run(lambda config: main(config, parse_steps(flags.FLAGS.profile)))
