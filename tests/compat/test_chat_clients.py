"""A tuned model in transformers and llama.cpp: the same ids and the same greedy answers.

These need the extra `clients`.
"""

import copy
import json
from pathlib import Path

import pytest
from test_export_clients import NEEDS, LlamaCpp, Transformers

from configs import chat as chat_config
from data_pipeline import byte_level
from data_pipeline.chat import MARKERS, Chat, Message, messages_of
from data_pipeline.special_tokens import with_specials
from data_pipeline.tokenizer import Tokenizer
from gptjax import export
from gptjax.compat import hf_tokenizer
from gptjax.inference import Sampler, Sampling, continue_rows, load_run
from gptjax.train import trainer

pytestmark = pytest.mark.slow

TALKS = [
    [("user", "What is the capital of France?")],
    [("system", "Answer briefly."), ("user", "Who are you?")],
    [("user", "Hello!"), ("assistant", "Hello!"), ("user", "  What is\n\na bug?  ")],
    [("user", "é 漢字 🙂 {{ x }} 'quoted' \\n")],
]
N_NEW = 24


def as_json(talk):
    return [{"role": role, "content": content} for role, content in talk]


@pytest.fixture(scope="module")
def workdir(debug_config, tmp_path_factory) -> Path:
    """A debug run, then one on the bundled conversations."""
    folder = tmp_path_factory.mktemp("runs")
    config = copy.deepcopy(debug_config)
    config.workdir, config.sample.prompts = str(folder / "base"), ()
    config.model.block_size = 128
    trainer.train_and_evaluate(config)
    tuned = chat_config.get_config(config.workdir)
    tuned.allow_cpu, tuned.log.tensorboard = True, False
    tuned.data.cache_dir, tuned.data.prepare_workers = str(folder / "stores"), 1
    tuned.sample.prompts, tuned.optim.learning_rate = (), 1e-2
    trainer.train_and_evaluate(tuned)
    return Path(tuned.workdir)


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir)


@pytest.fixture(scope="module")
def answers(run) -> list[str]:
    """Ours: greedy."""
    template, sampler = Chat(run.tokenizer), Sampler(run.model_config, run.params)
    rows = [template.prompt([Message(*turn) for turn in talk]) for talk in TALKS]
    greedy = Sampling(max_new_tokens=N_NEW, temperature=0.0, top_k=0, top_p=1.0)
    texts = [""] * len(rows)
    for i, piece in continue_rows(sampler, run.tokenizer, rows, greedy, seeds=[0] * len(rows)):
        texts[i] += piece
    assert len(set(texts)) > 1 and all(texts)
    return texts


def test_transformers_gives_the_same_ids_and_answers(run, workdir, answers, tmp_path):
    export.export_hf(workdir, tmp_path / "hf")
    theirs = Transformers(tmp_path / "hf")
    template = Chat(run.tokenizer)
    assert theirs.model.generation_config.eos_token_id == [1, 513]
    for talk, answer in zip(TALKS, answers, strict=True):
        inputs = theirs.tokenizer.apply_chat_template(
            as_json(talk), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = inputs["input_ids"][0].tolist()
        assert ids == template.prompt(messages_of(as_json(talk)))
        drawn = theirs.model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False)[0]
        text = theirs.tokenizer.decode(drawn[len(ids) :], skip_special_tokens=True)
        assert text.rstrip("\ufffd") == answer.rstrip("\ufffd")


def test_transformers_gives_the_same_ids_with_a_byte_level_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    characters = [*byte_level.BYTES, "th", "the", "ĊĊ", byte_level.BOS]
    vocab = {token: i for i, token in enumerate(characters)}
    plain = byte_level.make_json(vocab, ["t h", "th e", "Ċ Ċ"])
    tokenizer = Tokenizer(with_specials(plain, MARKERS))
    for name, content in (
        ("tokenizer", hf_tokenizer.tokenizer_json(tokenizer)),
        ("tokenizer_config", hf_tokenizer.tokenizer_config(tokenizer, 64)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for talk in TALKS:
        given = theirs.apply_chat_template(as_json(talk), add_generation_prompt=True)
        ids = given["input_ids"] if hasattr(given, "keys") else given
        assert list(ids) == Chat(tokenizer).prompt(messages_of(as_json(talk)))


def test_llama_cpp_gives_the_same_ids_and_answers(run, workdir, answers, tmp_path):
    export.export_gguf(workdir, tmp_path / "model.gguf")
    llama = LlamaCpp(tmp_path / "model.gguf", run.model_config.block_size)
    template = Chat(run.tokenizer)
    for talk, answer in zip(TALKS, answers, strict=True):
        prompt = llama.post("/apply-template", messages=as_json(talk))["prompt"]
        ids = llama.post("/tokenize", content=prompt, add_special=True, parse_special=True)
        assert ids["tokens"] == template.prompt(messages_of(as_json(talk)))
        body = {"messages": as_json(talk), "max_tokens": N_NEW, "temperature": 0}
        reply = llama.post("/v1/chat/completions", **body)
        content = reply["choices"][0]["message"]["content"]
        assert content.rstrip("\ufffd") == answer.rstrip("\ufffd")
        assert reply["usage"]["prompt_tokens"] == len(ids["tokens"])
