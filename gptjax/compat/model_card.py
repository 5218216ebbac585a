"""A model card: the README.md of an exported folder, with the run's figures, data and limits."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.read import read_json
from data_pipeline.chat import has_markers
from gptjax.checkpoint import storage
from gptjax.common.workdir import CHECKPOINTS, EVALUATIONS, MAX_EVALUATION
from gptjax.compat import hf_weights
from gptjax.inference import LoadedModel
from gptjax.model import count_params

_MAX_FILES = 12  # of the data that are listed
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
{prompt}
output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```
"""
_TEXT = 'inputs = tokenizer("The ", return_tensors="pt")'
_CHAT = """\
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def card(run: LoadedModel, workdir: Path, dtype: str) -> str:
    """Returns the text of the card, in Markdown behind what the Hub reads, in YAML.

    It has no path of this machine. What is not known, as of an imported model, is left out.
    """
    meta = storage.read_meta(workdir / CHECKPOINTS / str(run.step))
    is_chat = has_markers(run.tokenizer)
    architecture = hf_weights.architecture_of(run.model_config)
    what = "answers messages" if is_chat else "continues English text"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags:\n- gptjax\n- {architecture.name}\n---\n",
        f"# {workdir.name}\n",
        f"A small language model that {what}, trained with gptjax.\n",
        _table(_facts(run, meta, architecture.hf_class, dtype)),
        "## Use\n",
        _USE.format(name=workdir.name, prompt=_CHAT if is_chat else _TEXT),
        "## Data\n",
        "".join(f"- {line}\n" for line in _data(meta)),
    ]
    if figures := dict(_evaluations(workdir, run.step)):
        parts += ["## Evaluation\n", _table(figures)]
    parts += ["## Limits\n", "".join(f"- {line}\n" for line in _limits(run, is_chat))]
    return "\n".join(parts)


def _facts(run: LoadedModel, meta: Mapping[str, Any], hf_class: str, dtype: str) -> dict[str, str]:
    model, config = run.model_config, run.config
    facts = {
        "parameters": f"{count_params(model)[0]:,}, in {dtype}",
        "architecture": f"{hf_class}: {model.n_layer} layers x {model.n_embd}, {model.n_head} "
        f"heads, {model.n_kv_head} of keys and values",
        "window": f"{model.block_size:,} tokens of a vocabulary of {model.vocab_size:,}",
    }
    if "progress" in meta:
        batch = config.train.batch_size * config.train.gradient_accumulation_steps
        facts["training"] = (
            f"{run.step:,} steps of {batch:,} x {model.block_size:,} tokens with "
            f"{config.optim.optimizer}, {meta['progress']['tokens_seen']:,} targets in all"
        )
    if meta.get("val_loss") is not None:
        counted = " of the assistant's words" if config.data.messages_column else ""
        facts["validation loss"] = f"{meta['val_loss']:.4f} nats a token{counted}"
    return facts


def _data(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each file; a mixture has a store for each source."""
    stores = meta.get("store", {})
    sources = stores["sources"] if "sources" in stores else []
    if meta.get("mixture") is not None:
        sources = [file for store in stores.values() for file in store["sources"]]
    for file in sources[:_MAX_FILES]:
        yield f"`{file['file']}`: {file['documents']:,} documents, {file['size_bytes']:,} bytes"
    if len(sources) > _MAX_FILES:
        yield f"{len(sources) - _MAX_FILES:,} more files"
    if not sources:
        yield "not known: the model was imported"


def _evaluations(workdir: Path, step: int) -> Iterator[tuple[str, str]]:
    """Yields the results of `gptjax.evaluate`, if it was run."""
    path = workdir / EVALUATIONS / f"{step}.json"
    results = read_json(path, MAX_EVALUATION) if path.is_file() else {}
    if "bits_per_byte" in results.get("val", {}):
        yield "validation split", f"{results['val']['bits_per_byte']:.4f} bits per byte"
    for name, values in results.get("benchmarks", {}).items():
        yield name, ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def _limits(run: LoadedModel, is_chat: bool) -> Iterator[str]:
    yield "It is small, and was trained on little text: what it says is often wrong."
    yield "Nothing was done against harmful, biased or private content of its data."
    yield f"It sees {run.model_config.block_size:,} tokens at a time."
    if is_chat:
        yield "A message that spells a marker of the template, such as <|im_end|>, is read as one."
    yield "The licence of its data is yours to check; that of the model is not set here."


def _table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return f"| | |\n| --- | --- |\n{rows}"
