"""Benchmark items in their published layouts, turned into requests with lm-eval 0.4.13's wording.

A parser takes one record of a JSON-lines file, in the layout of the data set's authors or of its
copy on Hugging Face.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
    """One question: requests to score, of which one is right."""

    requests: tuple[tuple[str, str], ...]  # (context, continuation)
    gold: int  # index of the right request
    lengths: tuple[int, ...] = ()  # characters of each choice, for acc_norm
    group: str = ""  # BLiMP's paradigm


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    pattern: str  # regular expression for the paths of its files, in lower case
    parse: Callable[[Record], Item]  # KeyError, ValueError, ... for an unknown layout
    metrics: tuple[str, ...]  # acc, acc_norm or perplexity
    layout: str  # for error messages


def _text(record: Record, key: str) -> str:
    """Returns a value that is put into a sentence, where any other would become text silently."""
    if not isinstance(record[key], str):
        raise TypeError(f"{key} is no text")
    return str(record[key])


def _multiple_choice(context: str, choices: list[str], gold: int) -> Item:
    if not 0 <= gold < len(choices):
        raise ValueError(f"the right answer is number {gold} of {len(choices)}")
    if not all(choices):
        raise ValueError("a choice is empty")
    requests = tuple((context, " " + choice) for choice in choices)
    return Item(requests, gold, tuple(map(len, choices)))


def _hellaswag(record: Record) -> Item:
    """Activity label and context, then an ending; WikiHow's markup is removed."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    label, first = _text(record, "activity_label"), _text(record, "ctx_a")
    context = f"{label}: {first} {record['ctx_b'].capitalize()}"
    endings = [clean(ending) for ending in record["endings"]]
    return _multiple_choice(clean(context), endings, int(record["label"]))


def _lambada(record: Record) -> Item:
    """The last word of a passage; only spaces separate words."""
    text = record.get("text") or f"{_text(record, 'context')} {_text(record, 'target')}"
    context, space, word = text.rpartition(" ")
    if not (context and word):
        raise ValueError("the text has no last word")
    return Item(((context, space + word),), 0)


def _piqa(record: Record) -> Item:
    solutions = [record["sol1"], record["sol2"]]
    goal = _text(record, "goal")
    return _multiple_choice(f"Question: {goal}\nAnswer:", solutions, int(record["label"]))


def _choices(record: Record) -> tuple[list[str], int]:
    """AI2's layout {"question": {"choices": [{"text", "label"}]}}, or Hugging Face's columns."""
    question = record.get("question")
    choices = question["choices"] if isinstance(question, Mapping) else record["choices"]
    if isinstance(choices, Mapping):
        texts, labels = choices["text"], choices["label"]
    else:
        texts, labels = zip(*((c["text"], c["label"]) for c in choices), strict=True)
    return list(texts), list(labels).index(record["answerKey"].strip())


def _arc(record: Record) -> Item:
    question = record["question"]
    is_nested = isinstance(question, Mapping)
    stem = _text(question, "stem") if is_nested else _text(record, "question")
    return _multiple_choice(f"Question: {stem}\nAnswer:", *_choices(record))


def _openbookqa(record: Record) -> Item:
    flat = record.get("question_stem")
    stem = _text(record, "question_stem") if flat else _text(record["question"], "stem")
    return _multiple_choice(stem, *_choices(record))


def _winogrande(record: Record) -> Item:
    """The text behind the blank is scored, for each way to fill it (Trinh and Le 2018)."""
    before, blank, after = record["sentence"].partition("_")
    if not (blank and after.strip()):
        raise ValueError("the sentence has no blank (_) with text behind it")
    gold = ("1", "2").index(str(record["answer"]))
    options = (record["option1"], record["option2"])
    return Item(tuple((before + option, " " + after.strip()) for option in options), gold)


def _blimp(record: Record) -> Item:
    """An acceptable sentence against a minimally different one that is not; both whole."""
    good = record.get("sentence_good") or record["good"]
    bad = record.get("sentence_bad") or record["bad"]
    group = _text(record, "UID" if "UID" in record else "uid")
    return Item((("", " " + good), ("", " " + bad)), 0, group=group)


_ARC_LAYOUT = 'id, question, choices {text, label} and answerKey, or AI2\'s {"question": {"stem"}}'

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "hellaswag",
            r"hella_?swag",
            _hellaswag,
            ("acc", "acc_norm"),
            "activity_label, ctx_a, ctx_b, endings and label (the test split has no labels)",
        ),
        Task("lambada", r"lambada", _lambada, ("acc", "perplexity"), "text, or context and target"),
        Task(
            "piqa",
            r"piqa",
            _piqa,
            ("acc", "acc_norm"),
            "goal, sol1, sol2 and label (as in Hugging Face's copy: the authors keep the labels in "
            "a file of their own)",
        ),
        Task("arc_easy", r"arc[-_]?easy", _arc, ("acc", "acc_norm"), _ARC_LAYOUT),
        Task("arc_challenge", r"arc[-_]?challenge", _arc, ("acc", "acc_norm"), _ARC_LAYOUT),
        Task(
            "winogrande",
            r"wino_?grande",
            _winogrande,
            ("acc",),
            "sentence, option1, option2 and answer (the test split has no answers)",
        ),
        Task(
            "openbookqa",
            r"openbook_?qa|obqa",
            _openbookqa,
            ("acc", "acc_norm"),
            "question_stem, choices {text, label} and answerKey, or AI2's "
            '{"question": {"stem", "choices"}}',
        ),
        Task(
            "blimp",
            r"blimp",
            _blimp,
            ("acc",),
            "sentence_good, sentence_bad and UID, or good, bad and uid",
        ),
    )
}
