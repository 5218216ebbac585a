"""What a run does between steps, each at its own interval: samples, benchmarks, the report.

Callbacks read the parameters and change nothing. Where one fails, that is logged and training
continues. What is off has no callback, and the modules that only it needs are not imported.
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
from data_pipeline.progress import format_seconds
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.workdir import SAMPLES
from gptjax.inference import Sampler, Sampling, continue_texts
from gptjax.metrics import MetricsWriter
from gptjax.metrics.writers import BENCHMARK
from gptjax.model import GPTConfig
from gptjax.step import on_one_device

_log = logging.getLogger(__name__)

Callback = Callable[[int, Any], object]  # takes the step and the parameters


class PeriodicCallback(NamedTuple):
    """A function that runs between steps, while the training clock stands still."""

    interval: int  # optimizer steps; 0: only at the end of the run, when every callback is due
    run: Callback
    rerun: bool = False  # also when a finished run is started again

    def due(self, step: int, *, at_end: bool) -> bool:
        """Returns whether to run after `step`."""
        return at_end or (self.interval > 0 and step % self.interval == 0)


def problems(config: ConfigDict) -> list[str]:
    """Returns the problems of the files that the callbacks of `config` read."""
    if not config.eval.benchmarks:
        return []
    from gptjax.evaluate import benchmarks

    paths = [Path(path) for path in config.eval.benchmarks if path]
    return [f"eval.benchmarks: {problem}" for problem in benchmarks.problems(paths)]


def measurements(
    config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer, writer: MetricsWriter
) -> list[PeriodicCallback]:
    """Returns the callbacks that run before a checkpoint is saved, so that it has their results.

    Raises UserError if a file of `eval.benchmarks` cannot be used.
    """
    callbacks = []
    if config.sample.prompts:
        sample = _guarded("sampling", _samples(config, model_config, tokenizer))
        callbacks.append(PeriodicCallback(config.sample.interval, sample, rerun=True))
    if config.eval.benchmarks:
        measure = _guarded("benchmarks", _benchmarks(config.eval, model_config, tokenizer, writer))
        callbacks.append(PeriodicCallback(config.eval.benchmark_interval, measure))
    return callbacks


def reports(config: ConfigDict) -> list[PeriodicCallback]:
    """Returns the callback that writes the report, after all others; none where it is off."""
    if not config.report.interval:
        return []
    from gptjax.report import write_report

    write = _guarded("the report", lambda *_: write_report(Path(config.workdir)), gather=False)
    return [PeriodicCallback(config.report.interval, write)]


def _guarded(name: str, callback: Callback, *, gather: bool = True) -> Callback:
    """Runs on process 0 and logs errors: a run of days is worth more than its samples.

    With `gather`, the parameters are whole and on one device, however a mesh shards them.
    """

    def run(step: int, params: Any) -> None:
        try:
            if gather:
                params = on_one_device(params)  # every process gives its share
            if jax.process_index() == 0:
                callback(step, params)
        except Exception as error:  # also such as no memory left on the device
            unexpected = not isinstance(error, UserError | OSError)
            text = "Step %d: %s failed (%s). Training continues."
            _log.error(text, step, name, error, exc_info=unexpected)

    return run


def _samples(config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer) -> Callback:
    """Logs a continuation of each of `sample.prompts` and writes them to workdir/samples.

    Of a chat, that is the answer to each.
    """
    prompts, is_chat = list(config.sample.prompts), bool(config.data.messages_column)
    options: Any = {"seeds": [config.seed] * len(prompts), "is_chat": is_chat}
    sampling = Sampling(**{field.name: config.sample[field.name] for field in fields(Sampling)})

    def sample(step: int, params: Any) -> None:
        sampler = Sampler(model_config, params)
        texts = [f"{prompt}\n" if is_chat else prompt for prompt in prompts]
        for i, piece in continue_texts(sampler, tokenizer, prompts, sampling, **options):
            texts[i] += piece
        for text in texts:
            _log.info("Sample:\n%s\n", text)
        path = Path(config.workdir) / SAMPLES / f"{step}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, ("\n\n---\n\n".join(texts) + "\n").encode(errors="replace"))

    return sample


def _benchmarks(
    eval_config: ConfigDict, model_config: GPTConfig, tokenizer: Tokenizer, writer: MetricsWriter
) -> Callback:
    """Writes the model's results on the files of `eval.benchmarks` as metrics."""
    from gptjax.evaluate import benchmarks
    from gptjax.evaluate.published import short_line
    from gptjax.inference.scoring import Scorer

    suite = benchmarks.Suite(
        tokenizer,
        benchmarks.find_files([Path(path) for path in eval_config.benchmarks]),
        limit=eval_config.benchmark_limit or None,
    )

    def measure(step: int, params: Any) -> None:
        start = time.monotonic()
        results = suite.run(Scorer(model_config, params), progress=True)
        values = {
            f"{BENCHMARK}{name}/{key}": value
            for name in suite.items  # without BLiMP's paradigms
            for key, value in results[name].items()
        }
        writer.write(step, values)
        seconds = format_seconds(time.monotonic() - start)
        _log.info("Step %d: %s (%s).", step, short_line(results), seconds)

    return measure
