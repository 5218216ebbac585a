"""How a file declares a sweep: settings x seeds of one configuration."""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

# Leaves by dotted name, a function that changes a configuration, or several changes in order.
Change = Mapping[str, object] | Callable[[ConfigDict], object] | Sequence["Change"]


def sweep(
    *,
    base: ConfigDict,
    settings: Mapping[str, Change],
    seeds: Sequence[int],
    common: Change = (),
    per_seed: Mapping[int, Change] | None = None,
) -> ConfigDict:
    """Returns the result of `get_config()` in a sweep's file, for `gptjax sweep`.

    All runs start from `base` and apply `common`, and those of a seed its change of `per_seed`, for
    example another slice of the data, so that intervals over seeds are over slices, too. Each
    setting then applies its change and is run with every value of config.seed in `seeds`; it is
    compared with the first setting.
    """
    parts = {"base": base, "common": common, "settings": settings, "seeds": tuple(seeds)}
    parts["per_seed"] = dict(per_seed or {})
    return ConfigDict(parts, convert_dict=False)  # a ConfigDict cannot have dotted names as keys
