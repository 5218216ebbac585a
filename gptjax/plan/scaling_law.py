"""A published scaling law for parameters and repeated data.

Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", section 3 and appendix: the
loss of Hoffmann et al. 2022, with discounts for repeated tokens and for parameters beyond the
compute-optimal number. Fitted on C4 with GPT-2-shaped models of up to 9e9 parameters and AdamW: it
ranks sizes; its losses are those of other data and another vocabulary.
"""

import math

_PARAM_TERM, _TOKEN_TERM, _IRREDUCIBLE, _EXPONENT = 521.0, 1488.0, 1.87, 0.353
_REPEATS_WORTH = 15.39  # R_D*: repetitions after which data is worth 1 - 1/e of new data at most
_EXCESS_WORTH = 5.31  # R_N*: the same of parameters

# Compute-optimal: the exponents of both terms are equal, so the ratio does not depend on the size.
PARAMS_PER_TOKEN = (_PARAM_TERM / _TOKEN_TERM) ** (1 / _EXPONENT)


def effective_tokens(unique: float, passes: float) -> float:
    """Returns the number of new tokens as good as `passes` over `unique` ones (equation 5)."""
    if passes <= 1:
        return unique * passes
    return _saturated(unique, passes - 1, _REPEATS_WORTH)


def effective_params(n_params: float, unique_tokens: float) -> float:
    """Returns parameters, with a discount beyond the optimal number for `unique_tokens`."""
    optimal = min(n_params, PARAMS_PER_TOKEN * unique_tokens)
    return _saturated(optimal, n_params / optimal - 1, _EXCESS_WORTH)


def loss(n_params: float, unique_tokens: float, passes: float) -> float:
    """Returns the law's loss, nats per token of its own data, after `passes` over the tokens."""
    unique = unique_tokens * min(passes, 1.0)
    tokens = effective_tokens(unique_tokens, passes)
    return (
        _IRREDUCIBLE
        + _PARAM_TERM / effective_params(n_params, unique) ** _EXPONENT
        + _TOKEN_TERM / tokens**_EXPONENT
    )


def _saturated(first: float, more: float, worth: float) -> float:
    """Returns `first` and `more` times as much on top, at diminishing returns."""
    return first * (1 + worth * (1 - math.exp(-more / worth)))
