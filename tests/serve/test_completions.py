"""OpenAI's completions without HTTP: which requests are refused, and that chunks add up."""

import functools
import itertools

import jax
import numpy as np
import pytest
from helpers import tiny_gpt

from gptjax.inference.sampler import Sampler
from gptjax.inference.scoring import ScoredTokens
from gptjax.model import gpt
from gptjax.serve import completions
from gptjax.serve.answers import TextAnswer
from gptjax.serve.completions import complete
from gptjax.serve.errors import APIError
from gptjax.serve.protocol import Parameters, parse


@pytest.fixture(scope="module")
def tokenizer(store):
    return store.tokenizer


def parsed(tokenizer, **body):
    return parse(body, tokenizer=tokenizer, block_size=32, model_name="debug")


DEEP = functools.reduce(lambda x, _: [x], range(900), 1)  # its repr() recurses too deeply


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompts": "a"}, "prompts", "Unrecognized"),
        ({"prompts": None}, "prompts", "Unrecognized"),
        ({"prompt": 3}, "prompt", "list of token ids"),
        ({"prompt": []}, "prompt", "list of token ids"),
        ({"prompt": ["a", 3]}, "prompt", "list of token ids"),
        ({"prompt": [1, 512]}, "prompt", "below 512"),
        ({"prompt": [1, -1]}, "prompt", "list of token ids"),
        ({"prompt": [1, 2.0]}, "prompt", "list of token ids"),
        ({"prompt": [True]}, "prompt", "list of token ids"),
        ({"prompt": [[1], []]}, "prompt", "list of token ids"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"max_tokens": -1}, "max_tokens", "from 0"),
        ({"max_tokens": 1.5}, "max_tokens", "an integer"),
        ({"max_tokens": True}, "max_tokens", "an integer"),
        ({"max_tokens": "7"}, "max_tokens", "an integer"),
        ({"max_tokens": 32}, "max_tokens", "33 tokens"),
        ({"max_tokens": float("inf")}, "max_tokens", "an integer"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": float("nan")}, "temperature", "from 0 to 2"),
        ({"top_p": -0.1}, "top_p", "from 0 to 1"),
        ({"n": 0}, "n", "from 1"),
        ({"n": 9, "prompt": ["a", "b"]}, "n", "at most 16"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"logprobs": True}, "logprobs", "an integer"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [1]}, "stop", "strings"),
        ({"echo": 1}, "echo", "true or false"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"stream": True, "stream_options": []}, "stream_options", "include_usage"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options", "or false"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options", "or false"),
        ({"stream": 1.0}, "stream", "true or false"),
        ({"seed": 0.5}, "seed", "an integer"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"best_of": True}, "best_of", "not supported"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
        ({"presence_penalty": 0.1}, "presence_penalty", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"model": "gpt-4"}, "model", "debug"),
        ({"model": 4}, "model", "name"),
        ({"prompt": DEEP}, "prompt", "list of token ids"),
        ({"x" * 500: 1}, "x" * 100, "Unrecognized"),
    ],
)
def test_bad_requests_name_the_parameter(tokenizer, body, param, words):
    with pytest.raises(APIError) as error:
        parsed(tokenizer, **body)
    body = error.value.body["error"]
    assert body["param"] == param and words in body["message"]
    assert body["type"] == "invalid_request_error"
    assert error.value.status == (404 if "not exist" in body["message"] else 400)
    assert len(body["message"]) < 400  # not the whole request


@pytest.mark.parametrize("body", [None, [], "prompt", 3])
def test_a_body_is_an_object(tokenizer, body):
    with pytest.raises(APIError, match="object"):
        parse(body, tokenizer=tokenizer, block_size=32, model_name="debug")


def test_defaults_and_forms_of_prompts(tokenizer):
    request = parsed(tokenizer)
    assert request.rows == [[tokenizer.bos_id]] and request.sampling.max_new_tokens == 16
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)
    nulls = parsed(tokenizer, **dict.fromkeys(Parameters.model_fields))
    assert nulls.parameters == request.parameters
    ids = tokenizer.encode("The end").tolist()
    assert parsed(tokenizer, prompt="The end").rows == [[tokenizer.bos_id, *ids]]
    bos_and_ids = [tokenizer.bos_id, *ids]
    assert parsed(tokenizer, prompt=ids).rows == [bos_and_ids]
    assert parsed(tokenizer, prompt=bos_and_ids).rows == [bos_and_ids]  # not twice
    assert parsed(tokenizer, prompt=ids, max_tokens=31 - len(ids)).rows == [bos_and_ids]
    assert parsed(tokenizer, prompt=ids, max_tokens=32 - len(ids)).rows == [ids]  # a whole window
    assert parsed(tokenizer, prompt=ids, user="me").texts == ["The end"]
    assert parsed(tokenizer, prompt=["The end", ids]).rows == [bos_and_ids] * 2
    both = parsed(tokenizer, prompt=[ids, [7]], n=2, seed=5, best_of=1, logit_bias={})
    assert both.rows == [bos_and_ids] * 2 + [[tokenizer.bos_id, 7]] * 2
    assert both.prompts == [ids, ids, [7], [7]]
    assert both.seeds == [5, 6, 5, 6]
    assert both.usage(3)["prompt_tokens"] == len(ids) + 3
    assert parsed(tokenizer, prompt=["a", "b"]).seeds[0] != parsed(tokenizer).seeds[0]  # random
    assert parsed(tokenizer, seed=2**64).seeds == [2**64]
    assert parsed(tokenizer, stop="x").parameters.stop == ["x"]
    assert parsed(tokenizer, n=2.0, frequency_penalty=0.0).parameters.n == 2
    assert 0 < parsed(tokenizer, top_p=0).sampling.top_p < 1e-5


@pytest.fixture(scope="module")
def sampler(tokenizer):
    """Random weights: bytes of every kind, and now and then BOS."""
    config = tiny_gpt(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1)
    params = gpt.init(config, jax.random.key(0))
    return Sampler(config, jax.tree.map(lambda p: p * 5 if p.std() > 0 else p, params))


def answered(sampler, tokenizer, **body):
    """-> (texts, tokens, finish reasons, usage)."""
    request = parsed(tokenizer, **body)
    n_rows, n_drawn = len(request.rows), 0
    texts, tokens, reasons = [""] * n_rows, [[] for _ in range(n_rows)], [None] * n_rows
    for i, text, shown, n, reason in itertools.chain(*complete(sampler, tokenizer, request)):
        assert reasons[i] is None, "a chunk after the last"
        texts[i] += text
        tokens[i] += shown
        reasons[i] = reason
        n_drawn += n
    return texts, tokens, reasons, request.usage(n_drawn)


def test_chunks_add_up(sampler, tokenizer):
    """Offsets are where a token's text begins; all drawn tokens are counted, shown or not."""
    reasons = set()
    for seed in range(3):
        body = {"prompt": "The ", "n": 8, "seed": seed * 100, "temperature": 2.0}
        texts, tokens, finish, used = answered(
            sampler, tokenizer, **body, max_tokens=26, logprobs=2
        )
        reasons |= set(finish)
        assert used["prompt_tokens"] == 1 + len(tokenizer.encode("The "))
        n_shown = sum(map(len, tokens))
        n_ended = finish.count("stop")  # by a BOS, which is not shown
        assert n_shown <= used["completion_tokens"] - n_ended
        assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
        for text, row, reason in zip(texts, tokens, finish, strict=True):
            assert reason == "stop" or len(row) == 26
            for token in row:
                assert token.logprob <= 0 and len(token.top) <= 2
                assert max(token.top.values()) >= token.logprob
                if not token.text.startswith("bytes:"):
                    assert text[token.offset :].startswith(token.text)
        # Without log-probabilities, and repeated, the texts are the same.
        assert answered(sampler, tokenizer, **body, max_tokens=26)[0] == texts
    assert reasons == {"stop", "length"}


def test_echo_without_new_tokens(sampler, tokenizer):
    drawn = answered(sampler, tokenizer, prompt="The ", seed=1, max_tokens=5)[0]
    echoed = answered(sampler, tokenizer, prompt="The ", seed=1, max_tokens=5, echo=True)[0]
    assert echoed == ["The " + drawn[0]]
    texts, _, reasons, used = answered(sampler, tokenizer, prompt="The ", max_tokens=0, echo=True)
    assert (texts, reasons, used["completion_tokens"]) == (["The "], ["length"], 0)


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_echoed_tokens_are_scored_as_by_hand(sampler, tokenizer, max_tokens):
    """lm-eval's client requests `echo` and `logprobs`, and sums the scores of the continuation.

    It finds it by the number of tokens of its own prompt: the BOS that we add is not echoed.
    """
    ids, text = tokenizer.encode("The \u20ac").tolist(), "And \u20ac"
    given = [[tokenizer.bos_id, *ids], text, ids, ""]
    prompts = [given[0], tokenizer.encode(text).tolist(), ids, []]
    body = {"prompt": given, "n": 2, "seed": 3, "temperature": 0, "logprobs": 3}
    body["max_tokens"] = max_tokens
    drawn, drawn_tokens, *_ = answered(sampler, tokenizer, **body)
    texts, tokens, reasons, used = answered(sampler, tokenizer, **body, echo=True)
    assert set(reasons) <= {"length", "stop"} and len(texts) == 8
    assert used["prompt_tokens"] == sum(map(len, prompts)) + 3
    for i, prompt in enumerate([prompt for prompt in prompts for _ in range(2)]):
        row = prompt if i < 2 else [tokenizer.bos_id, *prompt]
        added = len(row) - len(prompt)
        echo = tokenizer.decode(prompt)
        assert texts[i] == echo + drawn[i]
        hidden = gpt.hidden_states(sampler.model_config, sampler.params, np.array([row]))
        logits = np.asarray(gpt.logits(sampler.model_config, sampler.params, hidden)[0], np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        echoed, rest = tokens[i][: len(prompt)], tokens[i][len(prompt) :]
        if not added:
            assert (echoed[0].logprob, echoed[0].top) == (None, None)
        for t in range(1 - added, len(prompt)):
            log_probs_V = log_probs[t + added - 1]
            assert echoed[t].text == completions.name_of(tokenizer, prompt[t])
            assert echoed[t].logprob == pytest.approx(log_probs_V[prompt[t]], abs=1e-5)
            best = np.argsort(-log_probs_V)[:3]
            names = [completions.name_of(tokenizer, token) for token in best.tolist()]
            assert list(echoed[t].top) == names
            assert list(echoed[t].top.values()) == pytest.approx(log_probs_V[best], abs=1e-5)
        decoded = [len(tokenizer.decode(prompt[:t])) for t in range(len(prompt))]
        whole = [t for t in range(len(prompt)) if not echoed[t].text.startswith("bytes:")]
        assert len(whole) < len(prompt) or not prompt  # the euro sign is three bytes
        assert [echoed[t].offset for t in whole] == [decoded[t] for t in whole]
        assert rest == [t._replace(offset=t.offset + len(echo)) for t in drawn_tokens[i]]


class Scripted:
    """A sampler that draws a given text, byte by byte."""

    def __init__(self, tokenizer, data, chunk):
        singles = {}
        for i in range(tokenizer.vocab_size):
            singles.setdefault(tokenizer.decode_bytes([i]), i)
        self.ids, self.chunk = [singles[bytes([b])] for b in data], chunk

    def draw(self, prompts, sampling, *, seeds, n_top):
        for start in range(0, len(self.ids), self.chunk):
            ids = np.array([self.ids[start : start + self.chunk]], np.int32)
            top = np.repeat(ids[..., None], n_top, -1)
            yield ScoredTokens(ids, np.zeros(ids.shape), top, np.zeros(top.shape))


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_tokens_end_where_the_text_does(tokenizer, chunk):
    scripted = Scripted(tokenizer, "a\u20acb. STOP and on".encode(), chunk)
    texts, tokens, reasons, used = answered(
        scripted, tokenizer, max_tokens=20, stop=[" STOP"], logprobs=1
    )
    assert (texts, reasons) == (["a\u20acb."], ["stop"])
    assert [(t.text, t.offset) for t in tokens[0]] == [
        ("a", 0),
        ("bytes:\\xe2", 1),
        ("bytes:\\x82", 1),
        ("bytes:\\xac", 1),
        ("b", 2),
        (".", 3),
    ]
    assert used["completion_tokens"] == len("a...b. STOP")


def test_json_of_log_probabilities(tokenizer):
    token = completions.Token("a", 3, -0.5, {"a": -0.5, "b": -1.0})
    answer = TextAnswer(parsed(tokenizer, logprobs=2), "debug")
    assert answer.part(completions.CompletionChunk(0, "a", [token], 1, None))["logprobs"] == {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.0}],
        "text_offset": [3],
    }
