"""The server: its command, its HTTP, and (slow) clients of other projects and its page."""

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
import uvicorn
from helpers import tiny_gpt

from configs.errors import UserError
from gptjax.inference.load import load_run
from gptjax.inference.sampler import Sampler
from gptjax.model import gpt
from gptjax.serve import __main__, server

ROOT = Path(__file__).parents[2]
SECRET = "a-long-enough-secret"


def test_other_machines_need_a_flag_and_a_token(tmp_path):
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    assert __main__._access("127.0.0.1", False, None) is None
    assert __main__._access("127.0.0.1", False, str(file)) == SECRET
    assert __main__._access("0.0.0.0", True, str(file)) == SECRET
    for public, token_file in ((False, None), (True, None), (False, str(file))):
        with pytest.raises(UserError, match="--public and --token_file"):
            __main__._access("0.0.0.0", public, token_file)
    file.write_text("short")
    with pytest.raises(UserError, match="16"):
        __main__._access("0.0.0.0", True, str(file))
    with pytest.raises(UserError, match="cannot be read"):
        __main__._access("localhost", False, str(tmp_path / "none"))


def test_a_port_in_use_is_explained():
    with __main__._listen("127.0.0.1", 0) as listener:
        with pytest.raises(UserError, match="--port="):
            __main__._listen("127.0.0.1", listener.getsockname()[1])


def test_a_missing_extra_is_named(tmp_path):
    """A folder whose fastapi cannot be imported precedes the installed packages."""
    (tmp_path / "fastapi.py").write_text("raise ImportError('no fastapi', name='fastapi')")
    result = subprocess.run(
        [sys.executable, "-m", "gptjax.serve", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert "gptjax[serve]" in result.stderr and "Traceback" not in result.stderr


# --- the application, in this process, on a socket ---


@contextlib.contextmanager
def listening(store, token=None):
    """Serves a small random model on a free port; yields the port."""
    model_config = tiny_gpt(vocab_size=store.tokenizer.vocab_size, block_size=128, n_layer=1)
    sampler = Sampler(model_config, gpt.init(model_config, jax.random.key(0)))
    engine = server.Engine(sampler, store.tokenizer, "debug")
    app = server.build_app(engine, token=token, hosts=("127.0.0.1",))
    web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with __main__._listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        web.should_exit = True
        thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(store):
    with listening(store) as port:
        yield port


def ask(port, method, path, body=None, **headers):
    """-> (status, parsed body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        standard = {"Content-Type": "application/json"} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {**standard, **named})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def events_of(port, body):
    """Returns the data of each server-sent event of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type").startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
        assert events.pop() == ""
    return [event.removeprefix("data: ") for event in events]


def test_errors_have_the_format_of_openai(port):
    completions = "/v1/completions"
    cases = [
        (400, ask(port, "POST", completions, {"max_tokens": 1000})),
        (400, ask(port, "POST", completions, b"{")),
        (400, ask(port, "POST", completions, b"[" * 100_000)),
        (400, ask(port, "POST", completions, b"\xff")),
        (400, ask(port, "POST", completions, b'{"\\ud800": 1}')),
        (404, ask(port, "POST", completions, {"model": "other"})),
        (413, ask(port, "POST", completions, b" " * 2_000_000)),
        (415, ask(port, "POST", completions, {"prompt": ""}, Content_Type="text/plain")),
        (403, ask(port, "GET", "/v1/models", Host="evil.example")),
        (404, ask(port, "GET", "/v1/models/other")),
        (404, ask(port, "GET", "/v2/completions")),
        (405, ask(port, "GET", completions)),
    ]
    for expected, (status, body) in cases:
        assert status == expected, body
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"]
    assert ask(port, "POST", completions, {"prompt": "The ", "max_tokens": 2})[0] == 200


def test_requests_need_the_token(store):
    with listening(store, token=SECRET) as port:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET[:-1]}):
            assert ask(port, "GET", "/v1/models", **headers)[0] == 401
            assert ask(port, "POST", "/v1/completions", {"prompt": ""}, **headers)[0] == 401
        assert ask(port, "GET", "/v1/models", Authorization=f"Bearer {SECRET}")[0] == 200


def test_a_stream_adds_up_to_the_whole_answer(port):
    request = {"prompt": ["The ", ""], "n": 2, "max_tokens": 40, "seed": 3, "logprobs": 2}
    whole = ask(port, "POST", "/v1/completions", request)[1]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    *events, usage, done = events_of(port, body)
    assert done == "[DONE]" and len(events) > 4
    texts, tokens, reasons = [""] * 4, [[] for _ in range(4)], [None] * 4
    for event in map(json.loads, events):
        assert event["object"] == "text_completion" and event["usage"] is None
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += choice["logprobs"]["tokens"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert tokens == [choice["logprobs"]["tokens"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    usage = json.loads(usage)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert len(events_of(port, {**request, "stream": True})) == len(events) + 1  # no usage


def test_an_error_in_the_model_is_reported(port, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(server.completions, "complete", fail)
    status, body = ask(port, "POST", "/v1/completions", {})
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "out of memory" not in body["error"]["message"]
    (event,) = events_of(port, {"stream": True})
    assert json.loads(event)["error"]["type"] == "server_error"
    assert "out of memory" in caplog.text


def test_concurrent_requests_are_all_answered(port):
    """Each as if it were alone, also when other clients disconnect."""

    def text(seed):
        status, body = ask(
            port, "POST", "/v1/completions", {"prompt": "The ", "seed": seed, "max_tokens": 60}
        )
        assert status == 200, body
        return body["choices"][0]["text"]

    def leave(seed):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"prompt": "The ", "seed": seed, "max_tokens": 120, "stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        connection.getresponse().read(10)
        connection.close()

    alone = [text(seed) for seed in range(8)]
    assert len(set(alone)) == 8
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        leaving = [pool.submit(leave, seed) for seed in range(6)]
        together = list(pool.map(text, range(8)))
        for future in leaving:
            future.result()
    assert together == alone


# --- the command, with a trained model; slow tests with clients of other projects ---


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the extra `clients`: {module} is not installed")


@pytest.fixture(scope="module")
def workdir(debug_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "debug"
    subprocess.run(
        [
            *(sys.executable, "-m", "gptjax.main", "--config=configs/debug.py"),
            f"--config.workdir={path}",
            f"--config.data.cache_dir={debug_config.data.cache_dir}",
            "--config.model.block_size=128",
        ],
        cwd=ROOT,
        check=True,
        timeout=600,
    )
    return path


@contextlib.contextmanager
def running(workdir, *arguments):
    """Starts a server on a free port; yields the port."""
    command = [sys.executable, "-m", "gptjax.serve", f"--workdir={workdir}", "--port=0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = ""
            while not (address := re.search(r"http://\S+:(\d+)/", log)):
                line = process.stderr.readline()
                assert line, f"the server ended: {log}"
                log += line
            yield int(address[1])
        finally:
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="module")
def trained_port(workdir):
    with running(workdir) as port:
        yield port


@pytest.mark.slow
def test_the_client_of_openai(trained_port):
    needs("openai")
    import openai

    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{trained_port}/v1", api_key="x", max_retries=0
    )
    assert [m.id for m in client.models.list()] == ["debug"]
    assert client.models.retrieve("debug").id == "debug"
    request = {
        "model": "debug",
        "prompt": ["The ", ""],
        "n": 2,
        "max_tokens": 40,
        "seed": 3,
        "logprobs": 5,
    }
    whole = client.completions.create(**request)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in whole.choices} <= {"length", "stop"}
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    texts, tokens, reasons, n_events = [""] * 4, [[] for _ in range(4)], [None] * 4, 0
    stream = client.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    for event in stream:
        n_events += 1
        for choice in event.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            reasons[choice.index] = choice.finish_reason
    assert n_events > 4 + 1
    assert event.choices == [] and event.usage == whole.usage
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="debug", prompt="a", max_tokens=128)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")


@pytest.mark.slow
def test_the_client_of_lm_eval_gets_our_scores(workdir, trained_port, tmp_path):
    """Its `local-completions`, with our exported tokenizer, agrees with the adapter."""
    needs("lm_eval", "tenacity", "transformers")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from gptjax.export import export_hf
    from gptjax.lm_eval_adapter import GPTJax

    export_hf(workdir, tmp_path / "hf")
    client = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{trained_port}/v1/completions",
        model="debug",
        tokenizer=str(tmp_path / "hf"),
        tokenizer_backend="huggingface",
        add_bos_token=True,
        max_length=128,
        batch_size=3,
    )
    pairs = [("The end", " is near"), ("Once upon a", " time"), ("", "It was"), ("A \u20ac", " 5")]
    requests = [Instance("loglikelihood", {}, arguments=pair, idx=0) for pair in pairs]
    theirs = client.loglikelihood(requests, disable_tqdm=True)
    ours = GPTJax(*load_run(workdir)[1:4]).loglikelihood(requests, disable_tqdm=True)
    for (log_likelihood, is_greedy), score in zip(theirs, ours, strict=True):
        assert log_likelihood == pytest.approx(score[0], rel=1e-5)
        assert is_greedy == score[1]


@pytest.mark.slow
def test_the_page_in_a_browser(trained_port, browser):
    """Type, watch the text arrive, look at a token, at desk and phone width."""
    from playwright.sync_api import expect

    body = {"prompt": "The <b>", "seed": 4, "max_tokens": 60, "temperature": 0.8, "top_p": 0.95}
    answer = ask(trained_port, "POST", "/v1/completions", body)[1]
    expected, n_tokens = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    for width in (1100, 390):
        page = browser.new_page(viewport={"width": width, "height": 844})
        problems = []
        page.on("pageerror", lambda error, to=problems: to.append(str(error)))
        page.on("console", lambda m, to=problems: to.append(m.text) if m.type == "error" else None)
        page.goto(f"http://127.0.0.1:{trained_port}/")
        expect(page.locator("#model")).to_have_text("debug")
        page.fill("#prompt", "The <b>")  # shown as it is, not as markup
        page.fill("#seed", "4")
        page.fill("#max_tokens", "60")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text(re.compile("reached|ended"), timeout=60_000)
        assert page.locator("#out").evaluate("e => e.textContent") == "The <b>" + expected
        spans = page.locator("#out .token")
        # A span each, except for tokens that are a character only together.
        assert 5 < spans.count() <= n_tokens
        spans.nth(5).click()
        rows = page.locator("#detail tr")
        assert 5 <= rows.count() <= 6
        drawn = page.locator("#detail tr.drawn")
        expect(drawn).to_have_count(1)
        assert spans.nth(5).get_attribute("title") in drawn.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not problems
        page.fill("#max_tokens", "1000")
        page.click("#go")
        expect(page.locator("#status.error")).to_contain_text("maximum context length")
        page.close()


@pytest.mark.slow
def test_the_command_serves_a_run_until_sigterm(workdir, tmp_path):
    (tmp_path / "token").write_text(SECRET)
    with running(workdir, f"--token_file={tmp_path / 'token'}") as port:
        start = time.monotonic()
        assert ask(port, "GET", "/v1/models")[0] == 401
        status, body = ask(port, "GET", "/v1/models", Authorization=f"Bearer {SECRET}")
        assert status == 200 and body["data"][0]["id"] == "debug"
    assert time.monotonic() - start < 20
