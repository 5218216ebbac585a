"""Checkpoints of a run: saved, verified, restored or refused."""

from configs.root_logger import unchanged_root_logger

with unchanged_root_logger():
    from gptjax.checkpoint.manager import Checkpoints, RunProgress, save_params
    from gptjax.checkpoint.storage import NotFinite, verify

__all__ = ["Checkpoints", "NotFinite", "RunProgress", "save_params", "verify"]
