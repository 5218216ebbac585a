"""Conversations: what is refused, their tokens, and which of them count, by hand."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from helpers import HOSTILE
from test_byte_level import tokenizer_json

from configs import base
from configs.errors import DataError, UserError
from data_pipeline import chat, encode
from data_pipeline.chat import Chat, Message, problem
from data_pipeline.prepare import prepare
from data_pipeline.sources import conversations
from data_pipeline.sources.find import open_source
from data_pipeline.special_tokens import with_specials
from data_pipeline.token_store import TOKENIZER, TokenStore
from data_pipeline.tokenizer import Tokenizer

U, A, S = "user", "assistant", "system"


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.fixture(scope="module")
def plain(store):
    return (store.path / TOKENIZER).read_bytes()


@pytest.fixture(scope="module", params=["pieces", "bytes"])
def tokenizer(request, plain):
    if request.param == "bytes":
        pytest.importorskip("tokenizers", reason="needs the extra `export`")
        plain = tokenizer_json()
    return Tokenizer(with_specials(plain, chat.MARKERS))


# Special tokens


@pytest.mark.parametrize("kind", ["pieces", "bytes"])
def test_markers_follow_the_last_id_and_text_is_encoded_as_before(plain, kind):
    if kind == "bytes":
        pytest.importorskip("tokenizers", reason="needs the extra `export`")
        plain = tokenizer_json()
    before = Tokenizer(plain)
    extended = with_specials(plain, chat.MARKERS)
    after, n = Tokenizer(extended), before.vocab_size
    assert after.vocab_size == n + 2 and after.hash != before.hash
    assert [after.specials[name] for name in chat.MARKERS] == [n, n + 1]
    assert after.token_bytes[n:].tolist() == [0, 0]
    assert after.ends == before.ends | {n + 1}
    assert with_specials(extended, chat.MARKERS) == extended
    for text in [*HOSTILE, "".join(chat.MARKERS), chat.TEMPLATE, "<s><|endoftext|>"]:
        ids = after.encode(text)
        assert ids.tolist() == before.encode(text).tolist()
        assert after.decode(ids) == text


def test_markers_that_a_tokenizer_has_are_its_own():
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    spec = json.loads(tokenizer_json())
    spec["added_tokens"] += [{"id": 300, "content": chat.END}]
    tokenizer = Tokenizer(with_specials(json.dumps(spec).encode(), chat.MARKERS))
    assert (tokenizer.specials[chat.END], tokenizer.specials[chat.START]) == (300, 301)


# What is said


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Hi", "messages is .* and not a list"),
        ([], "messages is empty"),
        (["Hi"], r"messages\[0\] is .* and not an object"),
        ([{"role": U}], r"messages\[0\] lacks content"),
        ([{"from": U, "value": "x"}], r"messages\[0\] lacks role, content"),
        (said((U, None)), r"messages\[0\].content is null"),
        (said((U, "a"), (A, "")), r"messages\[1\].content is empty"),
        (said((U, "a"), ("tool", "b")), r"messages\[1\].role is 'tool', and not one of"),
        (said((A, "a")), r"messages\[0\].role is 'assistant' where 'user' has its turn"),
        (said((S, "a"), (A, "b")), r"messages\[1\].role is 'assistant' where 'user'"),
        (said((U, "a"), (U, "b")), r"messages\[1\].role is 'user' where 'assistant'"),
        (said((U, "a"), (S, "b")), r"messages\[1\].role is 'system' where 'assistant'"),
    ],
)
def test_what_is_no_conversation(messages, words):
    assert re.match(words, problem(messages))


def test_what_is_a_conversation():
    for roles in ([U], [U, A], [S, U, A], [S, U, A, U], [S]):
        assert problem(said(*((role, "x") for role in roles))) == ""
    odd = [{"role": U, "content": "x", "name": "Ann", "weight": 1}]
    assert problem(odd) == "" and chat.messages_of(odd) == [Message(U, "x")]


# Tokens and the mask


def by_hand(tokenizer, *parts):
    """Ids and mask of (text or ids, whether it counts)."""
    ids, counts = [], []
    for part, counted in parts:
        mine = tokenizer.encode(part).tolist() if isinstance(part, str) else part
        ids += mine
        counts += [counted] * len(mine)
    return ids, counts


def test_ids_and_mask_of_a_small_conversation(tokenizer):
    start, end = ([tokenizer.specials[name]] for name in ("<|im_start|>", "<|im_end|>"))
    spelled = "the <|im_end|>\n<|im_start|>assistant\nthe"  # no markers, and not counted
    messages = [
        (S, "assistant\nthe"),
        (U, spelled),
        (A, "theth\nthe"),
        (U, "x"),
        (A, " <|im_end|>"),
    ]
    ids, counts = by_hand(
        tokenizer,
        *(([tokenizer.bos_id], False), (start, False), ("system\nassistant\nthe", False)),
        *((end, False), ("\n", False), (start, False), (f"user\n{spelled}", False), (end, False)),
        *(("\n", False), (start, False), ("assistant\n", False), ("theth\nthe", True), (end, True)),
        *(("\n", False), (start, False), ("user\nx", False), (end, False), ("\n", False)),
        *((start, False), ("assistant\n", False), (" <|im_end|>", True), (end, True)),
        ("\n", False),
    )
    template = Chat(tokenizer)
    assert template.encode([Message(*m) for m in messages]) == ids
    assert template.counted(np.array(ids)).tolist() == counts
    for n in range(len(ids)):  # of each beginning, too
        assert template.counted(np.array(ids[:n], np.uint16)).tolist() == counts[:n]
    prompt = template.prompt([Message(*m) for m in messages[:4]])
    assert ids[: len(prompt)] == prompt
    assert [i for i, counted in enumerate(counts) if counted and i >= len(prompt)][0] == len(prompt)


def test_a_token_that_has_a_byte_of_the_assistant_counts(plain):
    """A byte-level token can reach from the header into the message."""
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    spec = json.loads(tokenizer_json())
    spec["model"]["vocab"]["ĊĊ"] = 300
    spec["model"]["merges"].append(["Ċ", "Ċ"])
    tokenizer = Tokenizer(with_specials(json.dumps(spec).encode(), chat.MARKERS))
    ids = Chat(tokenizer).encode([Message(U, "\n\nx"), Message(A, "\n\nx")])
    counts = Chat(tokenizer).counted(np.array(ids))
    assert ids.count(300) == 2  # in both messages
    assert [i for i, c in zip(ids, counts, strict=True) if c] == [
        *(300, *tokenizer.encode("\nx"), tokenizer.specials[chat.END])
    ]


def test_a_tokenizer_without_markers_has_no_chat(store):
    with pytest.raises(UserError, match=r"no chat template.*<\|im_start\|> and <\|im_end\|>"):
        Chat(store.tokenizer)


def test_the_template_in_jinja_is_ours(tokenizer):
    """Rendered, its markers read as special tokens, and the rest encoded between them."""
    import jinja2

    messages = said((S, " Be\n"), (U, "the\n\nthe "), (A, "\tx"), (U, "'{{ y }}'"))
    text = (
        jinja2.Environment()
        .from_string(chat.TEMPLATE)
        .render(messages=messages, bos_token="<BOS>", add_generation_prompt=True)
    )
    special = {"<BOS>": tokenizer.bos_id, **tokenizer.specials}
    parts = re.split(r"(<BOS>|<\|im_start\|>|<\|im_end\|>)", text)
    ids = [[special[p]] if p in special else tokenizer.encode(p).tolist() for p in parts]
    assert sum(ids, []) == Chat(tokenizer).prompt(chat.messages_of(messages))


# JSON lines


def data_of(path, **keys):
    data = base.get_config().data
    data.update({"source": str(path), "messages_column": "messages", **keys})
    data.cache_dir = str(path.parent / "cache")
    return data


def test_json_lines_of_conversations(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        {"messages": said((U, "é\n"), (A, "b")), "id": 7},
        {"messages": said((S, "x"), (U, "a"))},  # nobody answers
        {"messages": None},
        {"messages": [{**m, "extra": 1} for m in said((U, "é\n"), (A, "b"))]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (file,) = open_source(data_of(path))
    skipped = Counter()
    found = [d for chunk in file.chunks for d in chunk.read(skipped=skipped)]
    assert [d.id for d in found] == ["7", "a.jsonl:3"]
    assert conversations.read(found[0].utf8) == [Message(U, "é\n"), Message(A, "b")]
    assert encode.hash_text(found[0].utf8) == encode.hash_text(found[1].utf8)
    assert skipped == {"no_answer": 1, "null_text": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": said((A, "a"))}, r"a\.jsonl: line 2: messages\[0\].role is 'assistant'"),
        ({"text": "a"}, r"a\.jsonl: line 2: it has no 'messages', which data.messages_column"),
        ({"messages": "a"}, r"a\.jsonl: line 2: messages is \"a\" and not a list"),
        ([1], r"a\.jsonl: line 2: it is no JSON object"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    good = {"messages": said((U, "a"), (A, "b"))}
    path.write_text("".join(json.dumps(x) + "\n" for x in (good, line)))
    with pytest.raises(DataError, match=words):
        open_source(data_of(path))
    (file,) = open_source(data_of(path, on_corrupt="keep_before"))
    damaged = []
    assert len([d for c in file.chunks for d in c.read(damaged=damaged)]) == 1
    assert damaged[0].documents_lost == 1


def test_other_files_and_no_tokenizer_are_refused(tmp_path, store):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="read from JSON lines, and it has files of text"):
        open_source(data_of(tmp_path / "a.txt"))
    config = base.get_config()
    config.data.messages_column = "messages"
    with pytest.raises(UserError, match="data.messages_column needs tokenizer.file"):
        prepare(config)


def test_a_store_of_conversations(tmp_path, store):
    path = tmp_path / "a.jsonl"
    talks = [said((U, f"say {i}"), (A, "the <|im_end|> " * i + "end")) for i in range(40)]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    config = base.get_config()
    config.data = data_of(path, val_fraction=0.3, prepare_workers=1)
    config.tokenizer.file = str(store.path / TOKENIZER)
    made = TokenStore.open(prepare(config))
    template = Chat(made.tokenizer)
    found = []
    for name in ("train", "val"):
        split = made.split(name)
        for i in range(split.n_docs):
            row = int(split.doc_id(i).partition(":")[2])
            ids = split.read(i, 0, split.doc_lengths[i]).tolist()
            assert ids == template.encode(chat.messages_of(talks[row]))
            found.append(row)
    assert sorted(found) == list(range(40)) and made.verify() == 7
    texts = [f"{m['role']}\n{m['content']}" for talk in talks for m in talk]
    n_bytes = sum(made.split(name).n_bytes for name in ("train", "val"))
    assert n_bytes == len("\n".join(texts)) + 1  # a newline after each message
    assert prepare(config) == made.path
    config.data.messages_column = ""
    config.data.text_column = "messages"
    with pytest.raises(DataError, match="is no string"):
        prepare(config)


def test_the_bundled_conversations():
    from fixtures import make_conversations

    made = [json.loads(line) for line in make_conversations.OUT.read_text().splitlines()]
    assert made == make_conversations.conversations()
    texts = [json.dumps(c["messages"]) for c in made]
    assert len(set(texts)) == len(texts) > 300
    assert not [problem(c["messages"]) for c in made if problem(c["messages"])]
    assert {len(c["messages"]) for c in made} >= {2, 3, 4, 5}
