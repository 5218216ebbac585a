"""The runs that a sweep declares: one a setting and seed, all checked before the first starts."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError
from configs.validate import leaves, leaves_of, unknown_keys, validate
from configs.workdir import CONFIG
from data_pipeline.prepare import locate, prepare
from data_pipeline.token_store import TokenStore
from gptjax.sweep.declare import Change
from gptjax.train.data_check import validate_store

# What a sweep does not need; its `common` may say otherwise.
LEAN = {
    "sample.prompts": (),
    "log.tensorboard": False,
    "checkpoint.keep_latest": 1,
    "checkpoint.keep_best": 0,
    "train.max_epochs": 1e9,  # many passes are a sweep's purpose, not an oversight
}
# What no result depends on: where things are, what is told and kept.
_ASIDE = re.compile(
    r"(workdir|compilation_cache_dir|data\.(cache_dir|prepare_workers|prefetch_batches)|"
    r"train\.(log_interval|max_epochs|max_hours)|(checkpoint|sample|log|claims)\..*)$"
)
_NAME = re.compile(r"\w[\w.,+=-]*")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    setting: str
    seed: int
    config: ConfigDict

    @property
    def name(self) -> str:
        """The name of its workdir."""
        return f"{self.setting}-s{self.seed}"

    @property
    def workdir(self) -> Path:
        """The folder of the run."""
        return Path(self.config.workdir)


def declared_trials(sweep: ConfigDict, folder: Path) -> list[Trial]:
    """Returns the runs of a sweep, first all settings with the first seed, then with the next.

    Args:
        sweep: from `gptjax.sweep.declare.sweep`.
        folder: of the sweep: each run gets a workdir in it.

    Raises:
        UserError: every key, value and contradiction that is wrong, of all settings, at once.
    """
    problems = []
    if not sweep.settings or not sweep.seeds:
        problems.append("there must be at least one setting and one seed")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        problems.append(f"a seed is there twice: {list(sweep.seeds)}")
    trials = []
    for setting, change in sweep.settings.items():
        if not _NAME.fullmatch(setting):
            problems.append(f"the setting {setting!r} cannot be the name of a folder")
        for seed in sweep.seeds:
            config = base.get_config()
            found: list[str] = []
            for part in (_flat(sweep.base), LEAN, sweep.common, change, {"seed": seed}):
                found += _apply(config, part)
            trial = Trial(setting, seed, config)
            config.workdir = str(folder / trial.name)
            try:
                validate(config, 1)  # more devices: each run says so itself
            except UserError as error:
                found += [line.lstrip(" -") for line in str(error).splitlines()[1:]]
            if config.train.log_interval > config.train.max_iters:
                found.append(
                    f"train.log_interval = {config.train.log_interval} exceeds train.max_iters = "
                    f"{config.train.max_iters}: no line would tell its tokens and seconds"
                )
            problems += [f"{setting}: {problem}" for problem in found]
            trials.append(trial)
    _refuse(problems)
    return sorted(trials, key=lambda trial: sweep.seeds.index(trial.seed))


def _flat(config: ConfigDict) -> dict[str, Any]:
    return dict(leaves_of(config.to_dict()))


def _apply(config: ConfigDict, change: Change) -> list[str]:
    """Changes `config`; returns what could not be done."""
    if callable(change):
        change(config)
        return []
    if not isinstance(change, Mapping):
        return [problem for part in change for problem in _apply(config, part)]
    problems = unknown_keys(list(change))
    for key, value in change.items():
        if key in leaves(config):
            try:
                config.update_from_flattened_dict({key: value})
            except (TypeError, ValueError) as error:
                problems.append(f"{key} = {value!r}: {error}")
    return problems


def changes(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves, of those that decide a result, that differ from configs/base.py: JSON.

    A key that is added later thus changes nothing, as long as its default is what was done before.
    """
    defaults = _json_leaves(base.get_config())
    found = {
        key: value
        for key, value in _json_leaves(config).items()
        if not _ASIDE.match(key) and value != defaults.get(key)
    }
    return {key: found[key] for key in sorted(found)}


def _json_leaves(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by dotted name as JSON has them: tuples are lists there."""
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    return dict(leaves_of(json.loads(json.dumps(tree))))


def refuse_others(trials: list[Trial], rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Raises UserError where a run of the same name was made, or begun, with other values.

    Args:
        trials: of the sweep as it is declared now.
        rows: of the table, by setting and seed.
    """
    problems = []
    defaults = _json_leaves(base.get_config())
    for trial in trials:
        here = changes(trial.config)
        row = rows.get((trial.setting, trial.seed))
        there = row and row["overrides"]
        file = trial.workdir / CONFIG
        if there is None and file.is_file():
            there = changes(json.loads(file.read_text()))
        if there is not None:  # a row may name what is a default
            there = {key: value for key, value in there.items() if value != defaults.get(key)}
        if there is not None and there != here:
            keys = sorted({k for k in {**there, **here} if there.get(k) != here.get(k)})
            values = [
                f"{k}: {there.get(k, 'default')} there, {here.get(k, 'default')} here" for k in keys
            ]
            problems.append(f"{trial.name} was run with {'; '.join(values)}")
    if problems:
        problems.append(
            "give a changed setting another name, so that both stay in the table; or remove its "
            "rows and workdirs"
        )
    _refuse(problems)


def prepare_data(trials: list[Trial]) -> None:
    """Prepares each token store once, and checks that every run has enough data.

    Raises:
        UserError: the data is unusable, or too small for some of the runs.
    """
    stores: dict[Path, TokenStore] = {}
    problems = []
    for trial in trials:
        path = locate(trial.config)[0]
        if path not in stores:
            stores[path] = TokenStore.open(prepare(trial.config))
        try:
            validate_store(trial.config, stores[path])
        except UserError as error:
            problems += [f"{trial.name}: {s.lstrip(' -')}" for s in str(error).splitlines()[1:]]
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    problems = list(dict.fromkeys(problems))  # of a setting, once for all seeds
    if problems:
        raise UserError("the sweep cannot run as it is declared:\n  - " + "\n  - ".join(problems))
