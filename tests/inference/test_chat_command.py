"""The conversation in the terminal: what the model sees, and what is kept."""

import builtins

import jax
import pytest
from helpers import tiny_gpt

from configs import base
from configs.errors import UserError
from data_pipeline.chat import MARKERS, Chat, Message
from data_pipeline.special_tokens import with_specials
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax import chat as command
from gptjax.chat import Conversation, talk
from gptjax.inference import LoadedModel, Sampling
from gptjax.model import gpt

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def run(store):
    tokenizer = Tokenizer(with_specials((store.path / TOKENIZER).read_bytes(), MARKERS))
    model_config = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1)
    params = gpt.init(model_config, jax.random.key(0))
    return LoadedModel(base.get_config(), model_config, params, tokenizer, 0)


@pytest.fixture
def scripted(run, monkeypatch):
    """Rows that the model was asked to continue; it answers "ok." in two pieces, or stops."""
    rows, limits, script = [], [], ["ok."]

    def continue_rows(sampler, tokenizer, given, sampling, *, seeds):
        rows.append(given[0])
        limits.append(sampling.max_new_tokens)
        for piece in script[0]:
            if piece == "!":
                raise KeyboardInterrupt
            yield 0, piece

    monkeypatch.setattr(command, "continue_rows", continue_rows)
    return rows, limits, script


def test_the_model_sees_the_conversation(run, scripted):
    rows, limits, _ = scripted
    conversation = Conversation(run, GREEDY, system="S")
    assert "".join(conversation.answer("a")) == "".join(conversation.answer("b")) == "ok."
    system, a, ok, b = (
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "ok."),
        Message("user", "b"),
    )
    template = Chat(run.tokenizer)
    assert rows == [template.prompt([system, a]), template.prompt([system, a, ok, b])]
    assert limits == [8, 8] and conversation.messages == [a, ok, b, ok]


def test_the_oldest_messages_give_way(run, scripted):
    rows, limits, _ = scripted
    conversation = Conversation(run, GREEDY, system="S")
    for word in "abcdefgh":
        list(conversation.answer(word))
    assert len(conversation.messages) == 16
    kept = [Message("system", "S"), *conversation.messages[-4:-1]]
    n = len(Chat(run.tokenizer).prompt(kept))
    assert rows[-1][:3] == rows[0][:3] and len(rows[-1]) + 8 <= 64
    assert len(rows[-1]) >= n  # as many as have room
    with pytest.raises(UserError, match=r"too long.*the model sees 64, of which the answer has 8"):
        list(conversation.answer("the end " * 30))
    assert len(conversation.messages) == 16
    list(conversation.answer("a"))  # and it continues
    assert all(limit == 8 for limit in limits)


def test_a_conversation_in_the_terminal(run, scripted, monkeypatch, capsys):
    rows, _, script = scripted
    lines = iter(["hello", "", "stop", "/new", "again"])

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        script[0] = "o!k" if line == "stop" else "ok."
        return line

    monkeypatch.setattr(builtins, "input", read)
    conversation = Conversation(run, GREEDY)
    talk(conversation)
    assert capsys.readouterr().out == "ok.\n\no [stopped]\n\nok.\n\n\n"
    assert [m.content for m in conversation.messages] == ["again", "ok."]
    assert len(rows) == 3 and rows[2] == Chat(run.tokenizer).prompt([Message("user", "again")])
