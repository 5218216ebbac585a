"""From the user's recipe to the best one, one thing at a time: one pass, equal size, three seeds.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/one_pass.py`. Each setting is the one before
it and one change more, except that Muon has its rates and warm-up, which muon_apart.py separates.
The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

TOKENS = 1_000_000

_STEPS: dict[str, Change] = {
    "recipe": {},
    "rate": {"optim.learning_rate": 1.2e-3},
    "muon": {
        "optim.optimizer": "muon",
        "optim.muon_learning_rate": 2.4e-3,
        "optim.learning_rate": 2.4e-3,  # of the embeddings, which AdamW keeps
        "optim.warmup_iters": 24,
    },
    "rope": {"model.position": "rope"},
    "rmsnorm": {"model.norm": "rmsnorm"},
    "qk_norm": {"model.qk_norm": True},
    "swiglu": {"model.mlp": "swiglu"},
    "zero_init": {"model.zero_init": True},
    # The same with half the tokens, and schedules that end there.
    "half": [lambda config: small.set_tokens(config, TOKENS // 2), {"optim.warmup_iters": 12}],
}


def get_config() -> ConfigDict:
    """Returns the sweep."""
    settings: dict[str, Change] = {}
    so_far: list[Change] = []
    for name, change in _STEPS.items():
        so_far = [*so_far, change]
        settings[name] = so_far
    return sweep(base=small.recipe(tokens=TOKENS), settings=settings, seeds=(1, 2, 3))
