"""Whether the best learning rate of Muon stays where it is when the model gets wider: a seed each.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/widths.py --jobs=2`. The results are in
benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=500_000)
    small.best(base)
    base.eval.eval_interval = base.train.max_iters  # only the last one is used
    settings: dict[str, Change] = {}
    for width in (64, 128, 256):
        for rate in (0.6e-3, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3):
            settings[f"{width}-{rate:g}"] = {
                "model.n_embd": width,
                "model.n_head": width // 64,  # heads stay 64 wide
                "optim.learning_rate": rate,  # of the embeddings, which AdamW keeps
                "optim.muon_learning_rate": rate,
            }
    return sweep(base=base, settings=settings, seeds=(1,))
