"""Shared by all programs: the workdir and its lock, stop signals, text tables, XLA's options."""
