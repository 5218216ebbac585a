"""What other small models score on the benchmarks, as others measured it with lm-eval, zero-shot.

Accuracies are shares. A figure that no source states for this very protocol is left out: HellaSwag
in completion style, for one, is two points lower for the same model. ARC, PIQA and WinoGrande items
are those of lm-eval's splits: test for ARC, validation for the others.

Here too is the table that sets our own results beside them, as the programs and the report show it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gptjax.evaluate.tasks import TASKS

Results = dict[str, dict[str, Any]]  # by benchmark: n, chance, and each metric with its _stderr


class Published(NamedTuple):
    """Figures of one model, by `task/metric`."""

    model: str
    figures: dict[str, float]
    source: str


_PYTHIA = "github.com/EleutherAI/pythia (a19eecb), evals/"

PUBLISHED = (
    Published(
        "GPT-2 124M",
        {
            "hellaswag/acc": 0.2892,
            "hellaswag/acc_norm": 0.3114,
            "lambada/acc": 0.3256,
            "lambada/perplexity": 40.06,
            "piqa/acc": 0.6289,
            "arc_challenge/acc": 0.1903,
            "winogrande/acc": 0.5161,
        },
        "HellaSwag: github.com/karpathy/llm.c, dev/data/hellaswag.py (lm-eval's line); LAMBADA: "
        "github.com/EleutherAI/lm-evaluation-harness/issues/2159; the others: "
        "huggingface.co/crumb/gpt2023, README.md",
    ),
    Published(
        "Pythia-70M",
        {
            "lambada/acc": 0.1846,
            "lambada/perplexity": 142.43,
            "piqa/acc": 0.5947,
            "piqa/acc_norm": 0.5914,
            "arc_easy/acc": 0.3737,
            "arc_easy/acc_norm": 0.3502,
            "arc_challenge/acc": 0.1809,
            "arc_challenge/acc_norm": 0.2210,
            "winogrande/acc": 0.5280,
        },
        _PYTHIA + "pythia-v1/pythia-70m/zero-shot/70m_step143000.json",
    ),
    Published(
        "Pythia-160M",
        {
            "lambada/acc": 0.3284,
            "lambada/perplexity": 38.06,
            "piqa/acc": 0.6273,
            "piqa/acc_norm": 0.6164,
            "arc_easy/acc": 0.4352,
            "arc_easy/acc_norm": 0.3965,
            "arc_challenge/acc": 0.1877,
            "arc_challenge/acc_norm": 0.2329,
            "winogrande/acc": 0.5312,
        },
        _PYTHIA + "pythia-v1/pythia-160m/zero-shot/160m_step143000.json",
    ),
    Published(
        "OPT-125M",
        {
            "lambada/acc": 0.3790,
            "lambada/perplexity": 26.02,
            "piqa/acc": 0.6300,
            "piqa/acc_norm": 0.6202,
            "arc_easy/acc": 0.4352,
            "arc_easy/acc_norm": 0.3998,
            "arc_challenge/acc": 0.1894,
            "arc_challenge/acc_norm": 0.2278,
            "winogrande/acc": 0.5028,
        },
        _PYTHIA + "opt/opt-125m.json",
    ),
    Published(
        "GPT-Neo-125M",
        {
            # The source does not say that its HellaSwag is acc, but its GPT-2 1.5B has 40.03 %,
            # which is gpt2-xl's acc (acc_norm: 50.89 %, according to llm.c).
            "hellaswag/acc": 0.2867,
            "lambada/acc": 0.3736,
            "lambada/perplexity": 30.27,
            "piqa/acc": 0.6306,
            "winogrande/acc": 0.5043,
        },
        "github.com/EleutherAI/gpt-neo, README.md, Model Evaluations",
    ),
)

NOTES = (
    "Accuracies in %, zero-shot as in lm-eval, ± one standard error over items.",
    *(f"{other.model}: {other.source}." for other in PUBLISHED),
)


def comparison(columns: Mapping[str, Results]) -> list[list[str]]:
    """Returns the rows of a table, its head first: a row for each metric of a benchmark.

    Beside its name stand the number of items and the chance level; the results, a column for each
    of `columns`; and the published figures, a column for each model.
    """
    rows = [["", "items", "chance", *columns, *(other.model for other in PUBLISHED)]]
    for name, task in TASKS.items():
        found = [results.get(name, {}) for results in columns.values()]
        for metric in task.metrics if any(found) else ():
            key = f"{name}/{metric}"
            items = dict.fromkeys(f"{n:,}" for v in found if isinstance(n := v.get("n"), int))
            chances = [chance for v in found if (chance := v.get("chance")) is not None]
            rows.append(
                [
                    f"{name} {metric}",
                    " / ".join(items),  # others, where fewer were asked for
                    _figure(chances[0], metric) if chances else "",
                    *(_with_error(values, metric) for values in found),
                    *(_figure(other.figures.get(key), metric) for other in PUBLISHED),
                ]
            )
    return rows


def text_table(results: Results, model_name: str) -> str:
    """Returns `comparison` of one model as text, with sources, and BLiMP's paradigms below."""
    rows = comparison({model_name: results})
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines += ["", *NOTES]
    if paradigms := {name: values for name, values in results.items() if name not in TASKS}:
        width = max(map(len, paradigms))
        lines.append("")
        lines += [f"{n.ljust(width)}  {_with_error(v, 'acc')}" for n, v in paradigms.items()]
    return "\n".join(line.rstrip() for line in lines)


def short_line(results: Results) -> str:
    """Returns the figures of whole benchmarks in one line, for a log."""
    return " | ".join(
        f"{name} {metric} {_with_error(results[name], metric)}"
        for name, task in TASKS.items()
        for metric in (task.metrics if name in results else ())
    )


def _with_error(values: Mapping[str, Any], metric: str) -> str:
    """Returns a figure ± its standard error; "n/a" where there is none."""
    if metric not in values:
        return "n/a"
    return f"{_figure(values[metric], metric)} ± {_figure(values.get(f'{metric}_stderr'), metric)}"


def _figure(value: Any, metric: str) -> str:
    """Returns a share in %, a perplexity as it is; what a damaged file may hold is "n/a"."""
    if not (isinstance(value, int | float) and abs(value) < 1e300):
        return "n/a"
    if metric == "perplexity":
        return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"
    return f"{100 * value:.1f}"
