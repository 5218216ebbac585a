"""Checkpoints of a run: saved, verified, restored or refused."""

from gptjax.checkpoint.manager import Checkpoints, RunProgress, save_params
from gptjax.checkpoint.storage import NotFinite, verify

__all__ = ["Checkpoints", "NotFinite", "RunProgress", "save_params", "verify"]
