"""What helps, and what does not, over and over the same tokens: one change each, a seed each.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/many_passes_changes.py --jobs=2`. A model of
0.34M parameters, so that the passes and the tokens a parameter can be about those that
configs/rtx4070_best.py has: 8 and 2.7. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.repeated(tokens=930_000, passes=8)
    base.model.n_embd = 64
    base.model.n_head = 1
    small.best(base)
    rate, steps = small.BEST_RATE, base.train.max_iters
    settings: dict[str, Change] = {
        "best": {},
        "decay-0.4": {"optim.weight_decay": 0.4},
        "ema": {"optim.ema_decay": 0.998},
        "wsd": {"optim.schedule": "wsd", "optim.min_lr": 0.0},
        "floor-0": {"optim.min_lr": 0.0},
        "half-rate": {"optim.learning_rate": rate / 2, "optim.muon_learning_rate": rate / 2},
        "dropout": {"model.dropout": 0.1},
        "adamw": {"optim.optimizer": "adamw"},
        "batch-x4": {
            "train.gradient_accumulation_steps": 4,
            "train.max_iters": steps // 4,
            "optim.lr_decay_iters": steps // 4,
            "optim.warmup_iters": steps // 80,
            "eval.eval_interval": steps // 40,
        },
        "decay-falls": {
            "optim.weight_decay": 0.8,
            "optim.weight_decay_schedule": "linear",
            "optim.weight_decay_end": 0.0,
        },
        "relu2": {"model.mlp": "relu2"},
        "untied": {"model.tie_embeddings": False},
    }
    return sweep(base=base, settings=settings, seeds=(1,))
