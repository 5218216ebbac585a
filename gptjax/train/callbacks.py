"""What a run does between steps, each at its own interval: samples, benchmarks, the report.

They read the parameters and change nothing. Where one fails, that is logged and training
continues. What is off has no callback, and what only it needs is not imported.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.files import write_atomically
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.formatting import format_seconds
from gptjax.common.workdir import SAMPLES
from gptjax.inference.generation import continue_texts
from gptjax.inference.sampler import Sampler, Sampling
from gptjax.metrics.writers import BENCHMARK, MetricsWriter
from gptjax.model.config import GPTConfig
from gptjax.step.multihost import on_one_device

_log = logging.getLogger(__name__)

Callback = Callable[[int, Any], None]  # takes the step and the parameters


class PeriodicCallback(NamedTuple):
    """Something that is done between steps, while the training clock stands still."""

    interval: int  # optimizer steps; 0: only at the end of the run, when every hook is due
    run: Callback
    again: bool = False  # also when a run that had come to its end is started once more

    def due(self, step: int, *, at_end: bool) -> bool:
        """Whether it is to be done behind `step`."""
        return at_end or (self.interval > 0 and step % self.interval == 0)


def problems(config: ConfigDict) -> list[str]:
    """Returns why the hooks of `config` could not do their work, read off the files they need."""
    if not config.eval.benchmarks:
        return []
    from gptjax.evaluate import benchmarks

    paths = [Path(path) for path in config.eval.benchmarks if path]
    return [f"eval.benchmarks: {problem}" for problem in benchmarks.problems(paths)]


def measurements(
    config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer, writer: MetricsWriter
) -> list[PeriodicCallback]:
    """Returns the hooks that come before a checkpoint, which is never without their results.

    Raises:
        UserError: if a file of `eval.benchmarks` cannot be used.
    """
    found = []
    if config.sample.prompts:
        sample = _with_whole_parameters(_samples(config, model_config, tokenizer))
        found.append(
            PeriodicCallback(config.sample.interval, _tolerant("sampling", sample), again=True)
        )
    if config.eval.benchmarks:
        measure = _with_whole_parameters(_benchmarks(config, model_config, tokenizer, writer))
        found.append(
            PeriodicCallback(config.eval.benchmark_interval, _tolerant("benchmarks", measure))
        )
    return found


def reports(config: ConfigDict) -> list[PeriodicCallback]:
    """Returns the hook that comes last and shows what the others found; none where it is off."""
    if not config.report.interval:
        return []
    from gptjax.report.page import write_report

    def report(step: int, _: Any) -> None:
        if jax.process_index() == 0:
            write_report(Path(config.workdir))

    return [PeriodicCallback(config.report.interval, _tolerant("the report", report))]


def _tolerant(name: str, callback: Callback) -> Callback:
    """Logs what goes wrong: a run of days is worth more than any sample of it."""

    def run(step: int, params: Any) -> None:
        try:
            callback(step, params)
        except (UserError, OSError) as error:
            _log.error("Step %d: %s failed (%s). Training goes on.", step, name, error)
        except Exception:  # such as no memory left on the device
            _log.exception("Step %d: %s failed. Training goes on.", step, name)

    return run


def _with_whole_parameters(callback: Callback) -> Callback:
    """Gives process 0 the parameters on one device, however they are spread over a mesh."""

    def run(step: int, params: Any) -> None:
        whole = on_one_device(params)  # every process gives its share
        if jax.process_index() == 0:
            callback(step, whole)

    return run


def _samples(config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer) -> Callback:
    """Prints a continuation of each of `sample.prompts` and keeps them in workdir/samples."""
    prompts = list(config.sample.prompts)
    how = Sampling(**{field.name: config.sample[field.name] for field in fields(Sampling)})

    def sample(step: int, params: Any) -> None:
        texts, seeds = list(prompts), [config.seed] * len(prompts)
        pieces = continue_texts(Sampler(model_config, params), tokenizer, prompts, how, seeds=seeds)
        for i, piece in pieces:
            texts[i] += piece
        for text in texts:
            _log.info("Sample:\n%s\n", text)
        path = Path(config.workdir) / SAMPLES / f"{step}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, ("\n\n---\n\n".join(texts) + "\n").encode(errors="replace"))

    return sample


def _benchmarks(
    config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer, writer: MetricsWriter
) -> Callback:
    """Writes how the model does on the files of `eval.benchmarks` as metrics."""
    from gptjax.evaluate import benchmarks
    from gptjax.evaluate.published import short_line
    from gptjax.inference.scoring import Scorer

    suite = benchmarks.Suite(
        tokenizer,
        benchmarks.find_files([Path(path) for path in config.eval.benchmarks]),
        limit=config.eval.benchmark_limit or None,
    )

    def measure(step: int, params: Any) -> None:
        start = time.monotonic()
        results = suite.run(Scorer(model_config, params), progress=False)
        values = {
            f"{BENCHMARK}{name}/{key}": value
            for name in suite.items  # BLiMP's paradigms are not among them
            for key, value in results[name].items()
        }
        writer.write(step, values)
        seconds = format_seconds(time.monotonic() - start)
        _log.info("Step %d: %s (%s).", step, short_line(results), seconds)

    return measure
