"""The Python API: `gptjax.load` and what a run offers."""

import contextlib
import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gptjax
from configs import debug
from configs.errors import UserError
from gptjax.inference import load_run
from gptjax.model.gpt import hidden_states, logits
from gptjax.train import trainer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def workdir(debug_config, steps, tmp_path_factory):
    """A finished run of a few steps."""
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path_factory.mktemp("api") / "run")
    config.train.max_iters = 4
    config.train.log_interval = config.eval.eval_interval = 2
    config.sample.prompts = ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "StepFunctions", lambda *_: steps)
        trainer.train_and_evaluate(config)
    return config.workdir


@pytest.fixture(scope="module")
def run(workdir):
    return gptjax.load(workdir)


def test_a_run_knows_itself(run, workdir):
    assert run.step == 4 and run.config.train.max_iters == 4
    assert run.n_params == sum(x.size for x in jax.tree.leaves(run.params))
    assert [line["step"] for line in run.metrics() if "val/loss" in line] == [2, 4]
    assert repr(run) == f"<Run {workdir}, step 4, {run.n_params:,} parameters>"


def test_logits_are_those_of_the_model_behind_bos(run):
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode("The law")]
    logits_TV = run.logits("The law")
    assert logits_TV.shape == (len(ids), run.model_config.vocab_size)
    assert logits_TV.dtype == np.float32
    hidden_BTD = hidden_states(run.model_config, run.params, np.array([ids], np.int32))
    np.testing.assert_array_equal(logits_TV, logits(run.model_config, run.params, hidden_BTD)[0])
    with pytest.raises(UserError, match="the model sees 32"):
        run.logits("word " * 100)


def test_greedy_text_takes_the_most_likely_token_each_time(run):
    text = run.generate("The ", max_new_tokens=3, temperature=0)
    ids = run.tokenizer.encode("The ").tolist()
    for _ in range(3):
        x_BTD = hidden_states(
            run.model_config, run.params, np.array([[run.tokenizer.bos_id, *ids]], np.int32)
        )
        ids.append(int(logits(run.model_config, run.params, x_BTD)[0, -1].argmax()))
    assert text == run.tokenizer.decode(ids)
    assert run.generate("The ", seed=3) == run.generate("The ", seed=3) != run.generate("The ")


def test_evaluation_is_the_mean_over_all_targets(run):
    text = "We the people"
    result = run.evaluate([text])
    ids = run.tokenizer.encode(text).tolist()
    log_probs_TV = jax.nn.log_softmax(run.logits(text))
    # Every token is a target once; the BOS that would open the next document is the last.
    targets = [*ids, run.tokenizer.bos_id]
    nats = -sum(float(log_probs_TV[t, token]) for t, token in enumerate(targets))
    assert result["loss"] == pytest.approx(nats / len(targets), rel=1e-5)
    n_bytes = len(text.encode())
    assert result["n_bytes"] == n_bytes
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    for nothing in ([], [""], "a text"):
        with pytest.raises(UserError, match="a list of texts"):
            run.evaluate(nothing)


def test_paths_are_str_or_path_in_any_directory(workdir, tmp_path):
    code = """
import gptjax.train, logging, pathlib, sys
assert not logging.root.handlers  # what is imported leaves logging to the script
print(gptjax.load(pathlib.Path(sys.argv[1])).step)
"""
    command = [sys.executable, "-c", code, workdir]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"
    assert load_run(str(workdir)).step == load_run(workdir).step == 4
    with pytest.raises(UserError, match="not the workdir of a run"):
        gptjax.load(str(tmp_path))


def test_the_example_opens_a_run(run, workdir, tmp_path):
    script = EXAMPLES / "open_a_run.py"
    command = [sys.executable, str(script), workdir]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert f"{run.n_params:,} parameters" in lines[0] and gptjax.__version__ in lines[0]
    assert sum(" | val loss " in line for line in lines) == 2
    assert sum(line.startswith("'The United States of' -> ") for line in lines) == 5
    assert lines[-1].endswith(" bits per byte on 55 bytes")


def test_the_notebook_is_clean_and_its_cells_run_in_order(
    debug_config, steps, tmp_path, monkeypatch, capsys
):
    """On the store and the compiled steps of other tests, whose learning rate is that of debug."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    with contextlib.suppress(ImportError):
        import nbformat

        nbformat.validate(notebook)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(debug, "get_config", lambda: copy.deepcopy(debug_config))
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: steps)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    shown = capsys.readouterr().out
    assert len(re.findall(r"^step +\d+  \d\.\d+  #+$", shown, re.MULTILINE)) == 20
    assert "The " in shown and shown.count("'The United States of' -> ") == 5
    assert len(re.findall(r"^<Run runs/notebook.*> \d\.\d+$", shown, re.MULTILINE)) == 2


def test_the_package_has_a_version_and_imports_little():
    code = "import gptjax, sys; print(gptjax.__version__, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, imported = done.stdout.split()
    assert version == gptjax.__version__ and imported == "False"
    with pytest.raises(AttributeError, match="nothing"):
        _ = gptjax.nothing
