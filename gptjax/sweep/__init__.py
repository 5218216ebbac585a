"""Trains settings x seeds of one configuration, and keeps a row of results for each run."""

from gptjax.sweep.declare import Change, sweep

__all__ = ["Change", "sweep"]
