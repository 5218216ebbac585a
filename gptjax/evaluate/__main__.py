"""Evaluates a run's best checkpoint: validation split, other text, benchmarks from local files.

    gptjax evaluate runs/quickstart
    gptjax evaluate runs/quickstart --noval --text=other.parquet
    gptjax evaluate runs/quickstart --noval --benchmarks=eval --limit=300

Results are printed and saved in workdir/eval/STEP.json.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from configs import cli
from configs.errors import DataError, UserError
from configs.read import read_json
from data_pipeline.files import write_atomically
from gptjax.common.workdir import EVALUATIONS, MAX_EVALUATION, refuse_links
from gptjax.evaluate import benchmarks
from gptjax.evaluate.published import text_table
from gptjax.evaluate.text_loss import Texts, evaluate_documents, read_texts, validation_documents
from gptjax.inference import load_run
from gptjax.inference.scoring import Scorer
from gptjax.model import count_params


def save(path: Path, results: dict[str, Any]) -> None:
    """Merges results into a JSON file, in place of earlier ones of the same names."""
    saved: dict[str, Any] = {}
    if path.is_file():
        try:
            saved = read_json(path, MAX_EVALUATION)
        except DataError as error:
            raise UserError(f"{error} Move it away and run again.") from error
    for name, value in results.items():
        nested = isinstance(value, dict) and isinstance(saved.get(name), dict)
        saved[name] = {**saved[name], **value} if nested else value
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(saved, indent=1) + "\n").encode())


def _line(name: str, values: dict[str, Any]) -> str:
    def figure(key: str, digits: int) -> str:
        stderr = values[f"{key}_stderr"]
        return f"{values[key]:.{digits}f} ± {'n/a' if stderr is None else f'{stderr:.{digits}f}'}"

    return (
        f"{name}: loss {figure('loss', 4)} | perplexity {figure('perplexity', 2)} | bits/byte "
        f"{figure('bits_per_byte', 4)} | {values['n_tokens']:,} tokens and {values['n_bytes']:,} "
        f"bytes of {values['n_documents']:,} documents (± one standard error over documents)"
    )


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    workdir, limit = Path(values.workdir), values.limit
    files = benchmarks.find_files([Path(p) for p in values.benchmarks])
    refuse_links(workdir)
    run = load_run(workdir)
    n_params = count_params(run.model_config)[0]
    print(f"{workdir}, step {run.step:,}: {n_params:,} parameters", flush=True)
    path = workdir / EVALUATIONS / f"{run.step}.json"
    save(path, {"step": run.step, "n_params": n_params})  # fails early if it cannot be written
    if values.val:
        store = None if values.store is None else Path(values.store)
        for source, documents in validation_documents(run, workdir, store).items():
            name = f"val of {source}" if source else "val"
            is_chat = bool(run.config.data.messages_column)
            result = evaluate_documents(run, documents, name, is_chat=is_chat)
            print(_line(name, result), flush=True)
            save(path, {"val": {source: result} if source else result})
    for text in values.text:
        name = Path(text).name
        texts = Texts(read_texts(text, limit, f"reading {name}"), run.tokenizer)
        result = evaluate_documents(run, texts, name)
        print(_line(text, result), flush=True)
        save(path, {"text": {text: result}})
    if files:
        scorer = Scorer(run.model_config, run.params)
        scores = benchmarks.Suite(run.tokenizer, files, limit).run(scorer, progress=True)
        print("\n" + text_table(scores, workdir.name), flush=True)
        save(path, {"benchmarks": scores})
    print(f"\nSaved in {path}.")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_bool("val", True, "Evaluate the whole validation split.")
    flags.DEFINE_string(
        "store", None, "Token store of that split; default: the run's, in data/stores."
    )
    flags.DEFINE_list(
        "text", [], "Other text, as data.source names it: parquet, .jsonl, .txt; folders, globs."
    )
    flags.DEFINE_list(
        "benchmarks",
        [],
        "JSON-lines files, plain or .gz, or folders of them, recognised by their names.",
    )
    flags.DEFINE_integer(
        "limit",
        None,
        "At most so many items of each benchmark (of each paradigm of BLiMP) and documents of each "
        "--text, a random sample that is the same each time.",
        lower_bound=1,
    )
    cli.run_argv(_main, first="workdir")
