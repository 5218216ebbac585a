"""Trains a model, or continues a run: `python -m gptjax.main --config=configs/quickstart.py`."""

import logging

import jax
from ml_collections import ConfigDict

from configs import cli
from gptjax.step.compilation_cache import keep_compiled
from gptjax.train import train_and_evaluate
from gptjax.train.require_gpu import require_gpu

_log = logging.getLogger(__name__)


def main(config: ConfigDict) -> None:
    """Trains with `config` on the devices that JAX finds."""
    keep_compiled(config.compilation_cache_dir)
    require_gpu(config)
    devices = jax.devices()
    _log.info("JAX %s on %d x %s.", jax.__version__, len(devices), devices[0].device_kind)
    train_and_evaluate(config)
    _log.info(
        'Done. To generate text: python -m gptjax.generate --workdir=%s --prompt="..."',
        config.workdir,
    )


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
