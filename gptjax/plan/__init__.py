"""Needs of a run before it starts: `planner.make_plan`; `check.refuse_unfit` in training."""
