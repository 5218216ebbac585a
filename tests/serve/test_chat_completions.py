"""OpenAI's chat completions: which requests are refused, the form of answers, what is computed."""

import contextlib
import http.client
import json

import jax
import pytest
from helpers import ask, tiny_gpt

from data_pipeline.chat import MARKERS, Chat, Message
from data_pipeline.special_tokens import with_specials
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.inference import Sampler, Sampling, continue_rows
from gptjax.model import gpt
from gptjax.serve import chat_protocol
from gptjax.serve.errors import APIError

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "The end"}]


@pytest.fixture(scope="module")
def model(store):
    tokenizer = Tokenizer(with_specials((store.path / TOKENIZER).read_bytes(), MARKERS))
    model_config = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=128, n_layer=1)
    return tokenizer, Sampler(model_config, gpt.init(model_config, jax.random.key(0)))


@pytest.fixture(scope="module")
def port(serving, model):
    tokenizer, sampler = model
    with serving(sampler, tokenizer) as port:
        yield port


def parsed(tokenizer, **body):
    return chat_protocol.parse(body, tokenizer=tokenizer, block_size=64, model_name="debug")


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "is missing"),
        ({"messages": []}, "messages", "a list of messages"),
        ({"messages": "Hi"}, "messages", "a list of messages"),
        ({"messages": ["Hi"]}, "messages", "a list of messages"),
        ({"messages": said(("user", 3))}, "messages", r"messages\[0\].content is 3"),
        ({"messages": said(("tool", "x"))}, "messages", "'tool', and not one of"),
        ({"messages": said(("user", "x"), ("assistant", "y"))}, "messages", r"\[1\].role must be"),
        ({"messages": said(("system", "x"))}, "messages", r"messages\[0\].role must be 'user'"),
        ({"messages": [{**HI[0], "tool_calls": [1]}]}, "messages", "tool_calls is not supported"),
        ({"messages": said(("user", [{"type": "image_url"}]))}, "messages", "parts that are no"),
        ({"messages": said(("user", "\ud800"))}, "messages", "surrogate"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens", "from 1"),
        ({"messages": HI, "max_completion_tokens": 64}, "max_tokens", "in your messages"),
        ({"messages": said(("user", "the " * 80))}, "max_tokens", "context length is 64"),
        ({"messages": HI, "logprobs": 1}, "logprobs", "true or false"),
        ({"messages": HI, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"messages": HI, "tools": []}, "tools", "Unrecognized"),
        ({"messages": HI, "prompt": "x"}, "prompt", "Unrecognized"),
        ({"messages": HI, "n": 17}, "n", "from 1 to 16"),
        ({"messages": HI, "model": "other"}, "model", "does not exist"),
    ],
)
def test_bad_requests_name_the_parameter(model, body, param, words):
    with pytest.raises(APIError, match=words) as error:
        parsed(model[0], **body)
    assert error.value.body["error"]["param"] == param


def test_forms_of_messages(model):
    tokenizer, _ = model
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "end"}]
    answered = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": []}
    messages = [{"role": "developer", "content": "S"}, *said(("user", parts)), answered, *HI]
    request = parsed(tokenizer, messages=messages, n=2, seed=5)
    expected = [("system", "S"), ("user", "The end"), ("assistant", "x"), ("user", "The end")]
    row = Chat(tokenizer).prompt([Message(*pair) for pair in expected])
    assert request.rows == [row] * 2 and request.seeds == [5, 6]
    assert request.sampling.max_new_tokens == 64 - len(row)  # the rest of the window
    assert parsed(tokenizer, messages=HI, max_tokens=3).sampling.max_new_tokens == 3


def greedy(model, n):
    tokenizer, sampler = model
    row = Chat(tokenizer).prompt([Message("user", "The end")])
    sampling = Sampling(max_new_tokens=n, temperature=0.0, top_k=0, top_p=1.0)
    return "".join(p for _, p in continue_rows(sampler, tokenizer, [row], sampling, seeds=[0]))


def test_an_answer_in_one_piece(port, model):
    body = {"messages": HI, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    status, answer = ask(port, "POST", PATH, {**body, "n": 2})
    assert status == 200 and answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-") and answer["model"] == "debug"
    n_prompt = len(Chat(model[0]).prompt([Message("user", "The end")]))
    assert answer["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 10,
        "total_tokens": n_prompt + 10,
    }
    for i, choice in enumerate(answer["choices"]):
        assert (choice["index"], choice["finish_reason"]) == (i, "length")
        message = choice["message"]
        assert message == {"role": "assistant", "content": greedy(model, 5), "refusal": None}
        scores = choice["logprobs"]["content"]
        assert len(scores) == 5
        assert all(len(s["top_logprobs"]) == 2 and s["logprob"] < 0 for s in scores)
        assert scores[0]["logprob"] == scores[0]["top_logprobs"][0]["logprob"]


def test_a_stream(port, model):
    body = {"messages": HI, "max_tokens": 5, "temperature": 0, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        options = {"stream_options": {"include_usage": True}}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", PATH, json.dumps(body | options), headers)
        events = connection.getresponse().read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    *chunks, usage = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {c["object"] for c in [*chunks, usage]} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [d.get("role") for d in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(d["content"] for d in deltas) == greedy(model, 5)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5


def test_a_model_without_a_template_says_so(listening):
    with listening() as port:
        status, body = ask(port, "POST", PATH, {"messages": HI})
    assert status == 400 and body["error"]["code"] == "no_chat_template"


@pytest.mark.slow
def test_the_client_of_openai(port, model):
    openai = pytest.importorskip("openai", reason="needs the extra `clients`")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    create = client.chat.completions.create
    options = {"model": "debug", "temperature": 0, "max_tokens": 9}
    reply = create(messages=HI, logprobs=True, top_logprobs=2, **options)
    assert reply.choices[0].message.content == greedy(model, 9)
    assert reply.choices[0].logprobs.content[0].logprob < 0
    usage = {"include_usage": True}
    chunks = list(create(messages=HI, stream=True, stream_options=usage, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == greedy(model, 9) and chunks[-1].usage == reply.usage
    again = [*HI, reply.choices[0].message, *HI]  # as programs do that keep the conversation
    assert create(messages=again, **options).usage.prompt_tokens > reply.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="tool_call_id is not supported"):
        create(messages=[{"role": "tool", "content": "x", "tool_call_id": "y"}], **options)
