"""The runs that a sweep declares, one for each setting and seed, validated before any starts."""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError
from configs.read import read_json
from configs.validate import leaves, unknown_keys, validate
from configs.workdir import CONFIG, MAX_CONFIG, completed
from data_pipeline.prepare import prepare_all
from data_pipeline.subset import validate_store
from data_pipeline.token_store import Stores
from gptjax.common.workdir import CHECKPOINTS
from gptjax.sweep.declare import Change
from gptjax.train import distillation

# Defaults of a sweep, which needs no samples and few checkpoints; `common` can change them.
LEAN = {
    "sample.prompts": (),
    "log.tensorboard": False,
    "checkpoint.keep_latest": 1,
    "checkpoint.keep_best": 0,
    "train.max_epochs": 1e9,  # many passes are a sweep's purpose, not an oversight
}
# Keys that no result depends on: paths, and what is logged and kept.
_WITHOUT_EFFECT = re.compile(
    r"(workdir|compilation_cache_dir|data\.(cache_dir|prepare_workers|prefetch_batches)|"
    r"train\.(log_interval|max_epochs|max_hours)|(checkpoint|sample|log)\..*)$"
)
_NAME = re.compile(r"\w[\w.,+=-]*")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    setting: str
    seed: int
    config: ConfigDict

    @property
    def key(self) -> tuple[str, int]:
        """Identifies its row in the table."""
        return self.setting, self.seed

    @property
    def name(self) -> str:
        """The name of its workdir."""
        return f"{self.setting}-s{self.seed}"

    @property
    def workdir(self) -> Path:
        """The folder of the run."""
        return Path(self.config.workdir)

    def remove_checkpoints(self) -> None:
        """Removes what a finished run no longer needs."""
        shutil.rmtree(self.workdir / CHECKPOINTS, ignore_errors=True)


def declared_trials(sweep: ConfigDict, folder: Path) -> list[Trial]:
    """Returns the runs of a sweep with workdirs in `folder`: all settings, seed after seed.

    Raises UserError that lists every wrong key, value and contradiction of all settings.
    """
    problems = []
    if not sweep.settings or not sweep.seeds:
        problems.append("there must be at least one setting and one seed")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        problems.append(f"a seed is listed twice: {list(sweep.seeds)}")
    trials = []
    for setting, change in sweep.settings.items():
        if not _NAME.fullmatch(setting):
            problems.append(f"the setting {setting!r} cannot be the name of a folder")
        for seed in sweep.seeds:
            config = base.get_config()
            common = [leaves(sweep.base), LEAN, sweep.common, sweep.per_seed.get(seed, ())]
            own = _apply(config, [*common, change, {"seed": seed}])
            trial = Trial(setting, seed, config)
            config.workdir = str(folder / trial.name)
            try:
                validate(config, 1)  # each run checks the number of devices itself
            except UserError as error:
                own += _listed(error)
            if config.train.log_interval > config.train.max_iters:
                own.append(
                    f"train.log_interval = {config.train.log_interval} exceeds train.max_iters = "
                    f"{config.train.max_iters}: its tokens and seconds would not be logged"
                )
            problems += [f"{setting}: {problem}" for problem in own]
            trials.append(trial)
    _refuse(problems)
    return sorted(trials, key=lambda trial: sweep.seeds.index(trial.seed))


def _apply(config: ConfigDict, change: Change) -> list[str]:
    """Changes `config`; returns the problems."""
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
    """Returns the leaves that affect results and differ from configs/base.py, as JSON values.

    A key that is added later is thus no change, if its default is the behaviour before it.
    """
    defaults = _json_leaves(base.get_config())
    return {
        key: value
        for key, value in sorted(_json_leaves(config).items())
        if not _WITHOUT_EFFECT.match(key) and value != defaults.get(key)
    }


def _json_leaves(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by dotted name, with lists for tuples."""
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    return leaves(json.loads(json.dumps(tree)))


def refuse_changed(trials: list[Trial], rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Raises UserError if a run has a row, or a workdir, with other values than it has now."""
    problems = []
    for trial in trials:
        file = trial.workdir / CONFIG
        if row := rows.get(trial.key):
            saved = changes(row["overrides"])  # a row of an older version can name a default
        elif file.is_file():
            saved = changes(completed(read_json(file, MAX_CONFIG)))
        else:
            continue
        current = changes(trial.config)
        values = [
            f"{key} = {saved.get(key, 'default')} (now {current.get(key, 'default')})"
            for key in sorted(saved.keys() | current.keys())
            if saved.get(key) != current.get(key)
        ]
        if values:
            problems.append(f"{trial.name} was run with {', '.join(values)}")
    if problems:
        problems.append(
            "give a changed setting another name, so that both stay in the table; or remove its "
            "rows and workdirs"
        )
    _refuse(problems)


def prepare_data(trials: list[Trial]) -> None:
    """Prepares each token store once; raises UserError if it is too small for some of the runs.

    Also if a teacher is missing.
    """
    stores: dict[str, Stores] = {}
    problems = []
    for trial in trials:
        problems += [f"{trial.name}: {problem}" for problem in distillation.problems(trial.config)]
        settings = trial.config.data.to_json() + trial.config.tokenizer.to_json()
        if settings not in stores:
            stores[settings] = prepare_all(trial.config)
        try:
            validate_store(trial.config, stores[settings])
        except UserError as error:
            problems += [f"{trial.name}: {problem}" for problem in _listed(error)]
    _refuse(problems)


def _listed(error: UserError) -> list[str]:
    return [line.lstrip(" -") for line in str(error).splitlines()[1:]]


def _refuse(problems: list[str]) -> None:
    problems = list(dict.fromkeys(problems))  # of a setting, once for all seeds
    if problems:
        raise UserError("the sweep cannot run as declared:\n  - " + "\n  - ".join(problems))
