"""Slow: a trained run as its command, its page and clients of other projects see it."""

import contextlib
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ask

from gptjax.inference.load import load_run

ROOT = Path(__file__).parents[2]
SECRET = "a-long-enough-secret"


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
