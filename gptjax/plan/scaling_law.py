"""What parameters and repeated data are worth, by a law that others fitted.

Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", section 3 and appendix: the
loss of Hoffmann et al. 2022 in which neither repeated tokens nor parameters beyond what the unique
tokens call for count in full. Fitted on C4 with models of up to 9e9 parameters, GPT-2-shaped, by
AdamW: it ranks sizes; its losses are those of other data and another vocabulary.
"""

import math

_PARAM_TERM, _TOKEN_TERM, _IRREDUCIBLE, _EXPONENT = 521.0, 1488.0, 1.87, 0.353
_REPEATS_WORTH = 15.39  # R_D*: repetitions after which data is worth 1 - 1/e of new data at most
_EXCESS_WORTH = 5.31  # R_N*: the same of parameters

# Of compute-optimal training: both terms fall at the same rate when parameters and tokens grow
# by the same factor, so that their ratio is fixed.
PARAMS_PER_TOKEN = (_PARAM_TERM / _TOKEN_TERM) ** (1 / _EXPONENT)


def effective_tokens(unique: float, passes: float) -> float:
    """Returns what `passes` over `unique` tokens are worth, in tokens read once (equation 5)."""
    if passes <= 1:
        return unique * passes
    return _saturated(unique, passes - 1, _REPEATS_WORTH)


def effective_params(n_params: float, unique_tokens: float) -> float:
    """Returns what parameters are worth beside the number that `unique_tokens` call for."""
    called_for = min(n_params, PARAMS_PER_TOKEN * unique_tokens)
    return _saturated(called_for, n_params / called_for - 1, _EXCESS_WORTH)


def loss(n_params: float, unique_tokens: float, passes: float) -> float:
    """Returns the law's loss, nats a token of its own data, after `passes` over the tokens."""
    unique = unique_tokens * min(passes, 1.0)  # what is never read is not there
    tokens = effective_tokens(unique_tokens, passes)
    return (
        _IRREDUCIBLE
        + _PARAM_TERM / effective_params(n_params, unique) ** _EXPONENT
        + _TOKEN_TERM / tokens**_EXPONENT
    )


def _saturated(first: float, more: float, worth: float) -> float:
    """Returns `first` (1 + worth (1 - e^(-more / worth))): what comes later is worth ever less."""
    return first * (1 + worth * (1 - math.exp(-more / worth)))
