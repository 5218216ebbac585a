"""The plan as training uses it: a refusal before any work, and a short form for the log."""

import dataclasses

from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import Stores
from gptjax.plan import devices, memory, planner, render, run_data
from gptjax.plan.planner import Plan
from gptjax.plan.run_data import Data


def refuse_unfit(config: ConfigDict) -> Plan:
    """Plans a run on the devices of this machine, its data not yet read.

    The step is compiled only if the estimate is within its tolerance of the memory budget.

    Raises:
        UserError: the run cannot fit; the message names a batch size that does.
    """
    device, data = devices.local(), Data(None, None, "not read")
    plan = planner.make_plan(config, device, data)
    low, high = (plan.peak_bytes * (1 + sign * memory.TOLERANCE) for sign in (-1, 1))
    if low <= device.budget_bytes < high:
        plan = planner.make_plan(config, device, data, compile_step=True)
    if not plan.fits:
        raise UserError(render.refusal(plan))
    return plan


def short_form(plan: Plan, stores: Stores) -> str:
    """Returns the text that training logs before step 0."""
    plan = dataclasses.replace(plan, data=run_data.stored(plan.config, stores))
    return render.describe(plan, full=False)
