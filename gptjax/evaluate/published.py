"""Published benchmark scores of other small models, and our results in a table beside them.

Figures are zero-shot by lm-eval; accuracies are shares. A figure that no source reports for this
very protocol is left out: HellaSwag in completion style, for one, is two points lower for the same
model. ARC, PIQA and WinoGrande items are lm-eval's splits: test for ARC, validation otherwise.
"""

from collections.abc import Mapping
from typing import Any

from gptjax.common.tables import plain_table
from gptjax.evaluate.tasks import TASKS

Results = dict[str, dict[str, Any]]  # by benchmark: n, chance, and each metric with its _stderr

_PYTHIA = "github.com/EleutherAI/pythia (a19eecb), evals/"
SOURCES = {  # by model
    "GPT-2 124M": (
        "HellaSwag: github.com/karpathy/llm.c, dev/data/hellaswag.py (lm-eval's line); LAMBADA: "
        "github.com/EleutherAI/lm-evaluation-harness/issues/2159; the others: "
        "huggingface.co/crumb/gpt2023, README.md"
    ),
    "Pythia-70M": _PYTHIA + "pythia-v1/pythia-70m/zero-shot/70m_step143000.json",
    "Pythia-160M": _PYTHIA + "pythia-v1/pythia-160m/zero-shot/160m_step143000.json",
    "OPT-125M": _PYTHIA + "opt/opt-125m.json",
    # The source does not say that its HellaSwag is acc, but its GPT-2 1.5B has 40.03 %, which is
    # gpt2-xl's acc (acc_norm: 50.89 %, according to llm.c).
    "GPT-Neo-125M": "github.com/EleutherAI/gpt-neo, README.md, Model Evaluations",
}
FIGURES: dict[str, tuple[float | None, ...]] = {  # by task/metric, in the order of SOURCES
    "hellaswag/acc": (0.2892, None, None, None, 0.2867),
    "hellaswag/acc_norm": (0.3114, None, None, None, None),
    "lambada/acc": (0.3256, 0.1846, 0.3284, 0.3790, 0.3736),
    "lambada/perplexity": (40.06, 142.43, 38.06, 26.02, 30.27),
    "piqa/acc": (0.6289, 0.5947, 0.6273, 0.6300, 0.6306),
    "piqa/acc_norm": (None, 0.5914, 0.6164, 0.6202, None),
    "arc_easy/acc": (None, 0.3737, 0.4352, 0.4352, None),
    "arc_easy/acc_norm": (None, 0.3502, 0.3965, 0.3998, None),
    "arc_challenge/acc": (0.1903, 0.1809, 0.1877, 0.1894, None),
    "arc_challenge/acc_norm": (None, 0.2210, 0.2329, 0.2278, None),
    "winogrande/acc": (0.5161, 0.5280, 0.5312, 0.5028, 0.5043),
}

NOTES = (
    "Accuracies in %, zero-shot as in lm-eval, ± one standard error over items.",
    *(f"{model}: {source}." for model, source in SOURCES.items()),
)


def comparison(columns: Mapping[str, Results]) -> list[list[str]]:
    """Returns the rows of a table, header first: one for each metric of a benchmark.

    The columns are the number of items, the chance level, each of `columns`, each published model.
    """
    rows = [["", "items", "chance", *columns, *SOURCES]]
    for name, task in TASKS.items():
        cells = [results.get(name, {}) for results in columns.values()]
        for metric in task.metrics if any(cells) else ():
            items = dict.fromkeys(f"{n:,}" for v in cells if isinstance(n := v.get("n"), int))
            chances = [chance for v in cells if (chance := v.get("chance")) is not None]
            row = [f"{name} {metric}", " / ".join(items)]  # several with different limits
            row += [_figure(chances[0], metric) if chances else ""]
            row += [_with_error(values, metric) for values in cells]
            published = FIGURES.get(f"{name}/{metric}", [None] * len(SOURCES))
            row += [_figure(value, metric) for value in published]
            rows.append(row)
    return rows


def text_table(results: Results, model_name: str) -> str:
    """Returns `comparison` of one model as text, with sources, and BLiMP's paradigms below."""
    parts = [plain_table(comparison({model_name: results})), *("", *NOTES)]
    paradigms = [(n, _with_error(v, "acc")) for n, v in results.items() if n not in TASKS]
    if paradigms:
        parts += ["", plain_table(paradigms)]
    return "\n".join(parts)


def short_line(results: Results) -> str:
    """Returns the figures of whole benchmarks in one line of a log."""
    return " | ".join(
        f"{name} {metric} {_with_error(results[name], metric)}"
        for name, task in TASKS.items()
        for metric in (task.metrics if name in results else ())
    )


def _with_error(values: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return "n/a"
    return f"{_figure(values[metric], metric)} ± {_figure(values.get(f'{metric}_stderr'), metric)}"


def _figure(value: Any, metric: str) -> str:
    """Returns a share in %, a perplexity as it is; "n/a" for anything else in a damaged file."""
    if not (isinstance(value, int | float) and abs(value) < 1e300):
        return "n/a"
    if metric == "perplexity":
        return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"
    return f"{100 * value:.1f}"
