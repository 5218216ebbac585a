"""Refuses a run that cannot fit, before anything is done."""

import dataclasses

from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import TokenStore
from gptjax.plan import devices, memory, planner, render
from gptjax.plan.planner import Data, Plan


def refuse_unfit(config: ConfigDict) -> Plan:
    """Plans a run on the devices of this machine, its data not yet known.

    An estimate that is clear of the budget by more than its tolerance decides; otherwise the step
    is compiled.

    Raises:
        UserError: the run cannot fit; says which batch size does. Nothing was done yet.
    """
    target = devices.local()
    vocab_size = config.tokenizer.vocab_size
    plan = planner.make_plan(config, target, Data(None, None, "not read"), vocab_size=vocab_size)
    if (
        plan.peak_bytes * (1 - memory.TOLERANCE)
        <= target.budget_bytes
        < plan.peak_bytes * (1 + memory.TOLERANCE)
    ):
        plan = planner.make_plan(
            config, target, plan.data, vocab_size=vocab_size, compile_step=True
        )
    if not plan.fits:
        raise UserError(render.refusal(plan))
    return plan


def short_form(plan: Plan, store: TokenStore) -> str:
    """Returns what training prints before step 0."""
    return render.describe(
        dataclasses.replace(plan, data=planner.stored(plan.config, store)), full=False
    )
