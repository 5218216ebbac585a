"""Trains a model, or continues a run.

gptjax train quickstart
gptjax train mine.py workdir=runs/mine optim.learning_rate=3e-4
"""

import logging

import jax
from absl import flags
from ml_collections import ConfigDict

from configs import cli
from gptjax import cluster
from gptjax.step.compilation_cache import keep_compiled
from gptjax.train import train_and_evaluate
from gptjax.train.require_gpu import require_gpu
from gptjax.train.step_trace import parse_steps

_log = logging.getLogger(__name__)


def main(config: ConfigDict, traced_steps: range = range(0)) -> None:
    """Trains with `config` on the devices that JAX finds; see `train_and_evaluate`."""
    keep_compiled(config.compilation_cache_dir)
    require_gpu(config)
    _log.info("JAX %s on %s.", jax.__version__, cluster.describe_devices(jax.devices()))
    step, n_steps = int(train_and_evaluate(config, traced_steps).step), config.train.max_iters
    if step < n_steps:
        _log.info("Stopped at step %d of %d. The same command continues.", step, n_steps)
        return
    text = 'Done. To generate text: gptjax generate %s --prompt="..."'
    if config.data.messages_column:
        text = "Done. To talk with the model: gptjax chat %s"
    _log.info(text, config.workdir)


def define_flags() -> None:
    """Defines the flags, beside the configuration, that do not differ between processes."""
    flags.DEFINE_string("profile", "", "First and last step of a trace in workdir/profile: 10:13.")
    flags.DEFINE_integer("join_seconds", 300, "How long to wait for all processes to start.", 1)
    flags.DEFINE_integer(
        "heartbeat_seconds", 60, "After how long a silent process is dead, and all others end.", 5
    )


def _join_and_train(config: ConfigDict) -> None:
    values = flags.FLAGS
    traced_steps = parse_steps(values.profile)
    numbers = (values.coordinator, values.processes, values.process)
    place = cluster.find_place(*numbers, values.join_seconds)
    with cluster.joined(place, values.join_seconds, values.heartbeat_seconds):
        main(config, traced_steps)


if __name__ == "__main__":
    cli.define_config()
    define_flags()
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, where no launcher says it: docs/cluster.md."
    )
    flags.DEFINE_integer(
        "processes", None, "Number of processes; 1: train alone, whatever started this one.", 1
    )
    flags.DEFINE_integer("process", None, "Number of this process, from 0.", 0)
    cli.run(_join_and_train)
