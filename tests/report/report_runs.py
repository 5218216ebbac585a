"""Hand-made runs with closed forms, and a hostile one, for the tests of the report."""

import json
import math

from helpers import Page

from configs import debug
from gptjax.common.workdir import save_config
from gptjax.report.page import write_report

# A run of configs/debug.py's shape, logged every 10 steps: 512 tokens and 1/4 s a step, from step
# 50 on half as many tokens in twice the time. Evaluations lie off these lines.
STEPS = range(10, 101, 10)
VAL_STEPS = (25, 75, 104)
# 6 FLOPs a matmul parameter (2 layers x 12 D^2, head V D) and 12 L D T; D = T = 32, V = 512.
FLOPS_PER_TOKEN = 6 * (2 * 12 * 32**2 + 512 * 32) + 12 * 2 * 32 * 32


def tokens(step):
    return 512 * min(step, 50) + 256 * max(0, step - 50)


def seconds(step):
    return min(step, 50) / 4 + max(0, step - 50) / 2


def loss(step):
    return 8 * math.exp(-step / 40)


def train_line(step, **other):
    return {
        "step": step,
        "train/loss": loss(step),
        "train/bits_per_byte": loss(step) / 3,
        "optim/learning_rate": 1e-3 * step,
        "optim/grad_norm": 1 + step / 100,
        "perf/tokens_per_sec": 2048.0 if step <= 50 else 512.0,
        "perf/mfu": None,
        "perf/train_seconds": seconds(step),
        "data/tokens_seen": tokens(step),
        "data/epoch": step / 40,
    } | other


def val_line(step):
    return {
        "step": step,
        "val/loss": loss(step) + 1,
        "val/perplexity": math.exp(loss(step) + 1),
        "val/bits_per_byte": (loss(step) + 1) / 3,
    }


def run_lines():
    lines = [train_line(step) for step in STEPS] + [val_line(step) for step in VAL_STEPS]
    return sorted(lines, key=lambda line: line["step"])


def make_run(workdir, lines=None, *, config=None, text=None):
    """A workdir with these lines of metrics (or this text), and a config.json."""
    workdir.mkdir(parents=True)
    if text is None:
        lines = run_lines() if lines is None else lines
        text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    config = config or debug.get_config()
    config.train.max_iters = 200
    save_config(config, workdir)
    return workdir


def report(*workdirs):
    first, *others = workdirs
    return Page(write_report(first, others))


HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>\u2028'\"&amp;"


def make_hostile_run(parent):
    """A run whose every text tries to break out of the page."""
    config = debug.get_config()
    config.data.source = HOSTILE
    config.sample.prompts = (HOSTILE,)
    skipped = {"step": 100, "skipped/loss": 9.0, "skipped/documents": [HOSTILE, "?"]}
    lines = [*run_lines(), {"step": 100, HOSTILE: 1.0}, skipped]
    workdir = make_run(parent / "<img src=x onerror=alert(3)>", lines, config=config)
    for folder in ("samples", "eval"):
        (workdir / folder).mkdir()
    (workdir / "samples/100.txt").write_text(HOSTILE)
    (workdir / "samples/\udcff.txt").write_text("a name that is no UTF-8")
    (workdir / "samples/<b>.txt").write_bytes(b"\xff\x00<b>")
    (workdir / "eval/x.json").write_text(json.dumps({HOSTILE: 1}))
    return workdir
