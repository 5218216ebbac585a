"""Slow: a trained run as its command, its page and clients of other projects see it."""

import contextlib
import importlib.util
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ask

from gptjax.export import export_hf
from gptjax.inference.load import load_run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/serving.md"
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
    """Starts a server on a free port; yields the port and the process."""
    command = [sys.executable, "-m", "gptjax.serve", f"--workdir={workdir}", "--port=0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = ""
            while not (address := re.search(r"http://\S+:(\d+)/", log)):
                line = process.stderr.readline()
                assert line, f"the server ended: {log}"
                log += line
            yield int(address[1]), process
        finally:
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="module")
def trained_port(workdir):
    with running(workdir) as (port, _):
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


TASKS = {  # a file of each kind of task
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.rpartition(' ')[0]}}",
        "doc_to_target": "{{' ' + text.rpartition(' ')[2]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text.rpartition(' ')[0]}}",
        "doc_to_choice": "{{['the', 'a \u20ac 5', 'of course']}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for lm-eval; the texts fit the client's window."""
    folder = tmp_path_factory.mktemp("tasks")
    document = (ROOT / "data_pipeline/tokenizer.py").read_text()
    texts = [" ".join(document.split()[i : i + n]) for i, n in enumerate((5, 8, 12, 9, 3, 7))]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    for name, fields in TASKS.items():
        source = {"data_files": {"test": str(folder / "texts.jsonl")}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": source, **fields}
        (folder / f"{name}.yaml").write_text(json.dumps({**task, "test_split": "test"}))
    return folder


def scores_of_lm_eval(command, tasks, out):
    """Runs lm-eval; returns its scores by task and metric."""
    more = ["--tasks", *TASKS, "--include_path", tasks, "--output_path", out]
    environment = os.environ | {
        "HF_HOME": str(out),
        "HF_HUB_OFFLINE": "1",
        "DISABLE_MULTIPROC": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, more)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (results,) = out.rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    return {
        (task, metric): value
        for task, values in scores.items()
        for metric, value in values.items()
        if isinstance(value, float) and "stderr" not in metric
    }


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    needs("lm_eval", "tenacity", "transformers", "safetensors")
    export_hf(workdir, folder := tmp_path_factory.mktemp("exported") / "hf")
    return folder


@pytest.mark.slow
def test_the_command_of_lm_eval_in_the_docs_gets_our_scores(
    workdir, trained_port, exported, tasks, tmp_path
):
    """As documented, but for the names; every kind of task agrees with the adapter."""
    (line,) = re.findall(r"^    lm_eval (run .*) --tasks .*$", DOCS.read_text(), re.MULTILINE)
    for documented, here in {
        "model=quickstart": "model=debug",
        "localhost:8000": f"127.0.0.1:{trained_port}",
        "tokenizer=quickstart-hf": f"tokenizer={exported}",
        "max_length=256": "max_length=128",
    }.items():
        assert documented in line
        line = line.replace(documented, here)
    theirs = scores_of_lm_eval(["lm_eval", *line.split()], tasks, tmp_path / "client")
    adapter = ["gptjax.lm_eval_adapter", "run", "--model", "gptjax"]
    adapter += ["--model_args", f"workdir={workdir}"]
    ours = scores_of_lm_eval(adapter, tasks, tmp_path / "adapter")
    assert ours.keys() == theirs.keys() and len(ours) >= 6
    for name, score in ours.items():
        assert theirs[name] == pytest.approx(score, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"tokenized_requests": False}])
def test_the_client_of_lm_eval_gets_our_scores(workdir, trained_port, exported, options):
    """With and without its own BOS, as token ids or text: each token has the adapter's score."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from gptjax.lm_eval_adapter import GPTJax

    client = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{trained_port}/v1/completions",
        model="debug",
        tokenizer=str(exported),
        max_length=128,
        batch_size=3,
        **options,
    )
    pairs = [("The end", " is near"), ("Once upon a", " time"), ("A \u20ac", " 5"), ("", "It was")]
    if options == {"tokenized_requests": False}:
        pairs.pop()  # it sends the BOS of an empty context as the text "<s>"
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
    with running(workdir, f"--token_file={tmp_path / 'token'}") as (port, _):
        assert ask(port, "GET", "/v1/models")[0] == 401
        status, body = ask(port, "GET", "/v1/models", Authorization=f"Bearer {SECRET}")
        assert status == 200 and body["data"][0]["id"] == "debug"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_whatever_its_clients_do(workdir, number):
    """1,500 half-open connections, half a body, a stalled reader, requests that are computed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    start = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    body = json.dumps({"n": 16, "max_tokens": 120, "logprobs": 5, "stream": True}).encode()
    whole = start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with contextlib.ExitStack() as stack, running(workdir) as (port, process):
        for i in range(1600):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):
                s.sendall(start if i < 1500 else whole[:-5] if i < 1550 else whole)
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=20)
        assert time.monotonic() - began < 5
        assert process.returncode == -number
        assert process.stderr.read() == ""
