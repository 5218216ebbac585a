"""The five-day recipe at 12 layers x 768: what a "110M" GPT with a 32k vocabulary really is.

Run `gptjax train rtx4070_110m`.
"""

from ml_collections import ConfigDict

from configs import rtx4070


def get_config() -> ConfigDict:
    """Returns the recipe of `rtx4070.py`, wider."""
    config = rtx4070.get_config()
    config.workdir = "runs/rtx4070_110m"
    # Compiled for the card as in rtx4070.py: 6.41 of 8.99 GiB, 1,839 GB an optimizer step.
    config.model.n_embd = 768
    config.model.n_head = 12  # heads of 64, as in GPT-2
    return config
