"""How a sweep is declared: settings x seeds of one configuration, in a file."""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

# Leaves by dotted name, a function that changes a configuration, or several of them in turn.
Change = Mapping[str, object] | Callable[[ConfigDict], object] | Sequence["Change"]


def sweep(
    *, base: ConfigDict, settings: Mapping[str, Change], seeds: Sequence[int], common: Change = ()
) -> ConfigDict:
    """Returns what `get_config()` of a sweep's file returns; gptjax.sweep runs it.

    Args:
        base: the configuration that all runs start from.
        settings: by name, how each changes it; the others are compared with the first.
        seeds: values of config.seed, which each setting is run with.
        common: what is changed in all runs, before their setting.
    """
    declared = ConfigDict(convert_dict=False)  # dotted names would not be keys of a ConfigDict
    declared.base, declared.common = base, common
    declared.settings, declared.seeds = settings, tuple(seeds)
    return declared
