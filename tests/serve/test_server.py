"""The server as programs and people meet it. Needs the extra `serve`, and openai or a browser."""

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import UserError
from gptjax.inference.load import load_run
from gptjax.serve import __main__

ROOT = Path(__file__).parents[2]
SECRET = "a-long-enough-secret"


def test_other_machines_need_a_flag_and_a_secret(tmp_path):
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


def test_without_the_extra_its_name_is_told(tmp_path):
    """A folder in which importing fastapi fails stands before what is installed."""
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


# --- with the extra ---


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the extra `clients`: {module} is not installed")


@pytest.fixture(scope="module")
def workdir(debug_config, tmp_path_factory):
    needs("fastapi", "uvicorn")
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
            while not (found := re.search(r"http://\S+:(\d+)/", log)):
                line = process.stderr.readline()
                assert line, f"the server ended: {log}"
                log += line
            yield int(found[1])
        finally:
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="module")
def port(workdir):
    with running(workdir) as port:
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


@pytest.mark.slow
def test_errors_have_openais_shape(port):
    completions = "/v1/completions"
    cases = [
        (400, ask(port, "POST", completions, {"max_tokens": 1000})),
        (400, ask(port, "POST", completions, b"{")),
        (400, ask(port, "POST", completions, b"[" * 100_000)),
        (400, ask(port, "POST", completions, b"\xff")),
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


@pytest.mark.slow
def test_a_secret_is_asked_for(workdir, tmp_path):
    (tmp_path / "token").write_text(SECRET)
    with running(workdir, f"--token_file={tmp_path / 'token'}") as port:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET[:-1]}):
            assert ask(port, "GET", "/v1/models", **headers)[0] == 401
            assert ask(port, "POST", "/v1/completions", {"prompt": ""}, **headers)[0] == 401
        assert ask(port, "GET", "/v1/models", Authorization=f"Bearer {SECRET}")[0] == 200


@pytest.mark.slow
def test_openais_client(port):
    needs("openai")
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
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
def test_lm_evals_own_client_gets_our_scores(workdir, port, tmp_path):
    """Its `local-completions`, with the tokenizer that we export, beside the adapter."""
    needs("lm_eval", "tenacity", "transformers")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from gptjax.export import export_hf
    from gptjax.lm_eval_adapter import GPTJax

    export_hf(workdir, tmp_path / "hf")
    client = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{port}/v1/completions",
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
def test_requests_at_once_are_all_answered(port):
    """Each as if it were alone, also when other clients leave in the middle."""

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


@pytest.mark.slow
def test_the_page_in_a_browser(port, browser):
    """Type, watch the text arrive, look at a token, at desk and phone width."""
    from playwright.sync_api import expect

    body = {"prompt": "The <b>", "seed": 4, "max_tokens": 60, "temperature": 0.8, "top_p": 0.95}
    answer = ask(port, "POST", "/v1/completions", body)[1]
    expected, n_tokens = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    for width in (1100, 390):
        page = browser.new_page(viewport={"width": width, "height": 844})
        problems = []
        page.on("pageerror", lambda error, found=problems: found.append(str(error)))
        page.on(
            "console",
            lambda m, found=problems: found.append(m.text) if m.type == "error" else None,
        )
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#model")).to_have_text("debug")
        page.fill("#prompt", "The <b>")  # shown as it is, not as markup
        page.fill("#seed", "4")
        page.fill("#max_tokens", "60")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text(re.compile("reached|ended"), timeout=60_000)
        assert page.locator("#out").evaluate("e => e.textContent") == "The <b>" + expected
        spans = page.locator("#out .token")
        # A mark each, but for tokens that are a character only together.
        assert 5 < spans.count() <= n_tokens
        spans.nth(5).click()
        rows = page.locator("#detail tr")
        assert 5 <= rows.count() <= 6
        drawn = page.locator("#detail tr.drawn")
        expect(drawn).to_have_count(1)
        assert spans.nth(5).get_attribute("title") in drawn.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not problems
        # A mistake is told in words.
        page.fill("#max_tokens", "1000")
        page.click("#go")
        expect(page.locator("#status.error")).to_contain_text("maximum context length")
        page.close()


@pytest.mark.slow
def test_the_server_ends_politely(workdir):
    with running(workdir) as port:
        start = time.monotonic()
        assert ask(port, "GET", "/v1/models")[0] == 200
    assert time.monotonic() - start < 20
