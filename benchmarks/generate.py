"""Tokens per second of generation, against nanoGPT's loop and transformers' `generate`.

    python -m benchmarks.generate --size=6x384 --size=12x512

All three have the same weights and draw as many tokens the same way (temperature 0.8, the 200 most
likely), in turn, round by round, in float32 on the CPU. nanoGPT's `GPT.generate` is a loop without
a cache: each token runs the window of at most block_size tokens through the model; it is written
out here over transformers' GPT-2. That they are the same model is checked first: greedy tokens
must agree. Needs torch and transformers. Prints one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import alternate
from configs import base
from gptjax.inference import Sampler, Sampling
from gptjax.model import GPTConfig, gpt

SIZES = {  # layers x width: heads, vocabulary, block_size
    "6x384": (6, 8_192, 256),
    "12x512": (8, 32_768, 1_024),
}
TEMPERATURE, TOP_K = 0.8, 200
PROMPT = [1]


def gpt_config(size: str) -> GPTConfig:
    n_layer, n_embd = map(int, size.split("x"))
    n_head, vocab_size, block_size = SIZES[size]
    config = base.get_config()
    config.model.update(block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    config.model.bias = True  # GPT-2 of transformers always has them
    config.model.compute_dtype = "float32"
    config.model.attention = "xla"
    return GPTConfig.from_config(config, vocab_size)


def to_transformers(model_config: GPTConfig, params: Any) -> GPT2LMHeadModel:
    """The same model in transformers."""
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model_config.vocab_size,
            n_positions=model_config.block_size,
            n_layer=model_config.n_layer,
            n_head=model_config.n_head,
            n_embd=model_config.n_embd,
            bos_token_id=None,
            eos_token_id=None,  # else a text may end early
        )
    )
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    weights = {"transformer.wte.weight": params["wte"], "transformer.wpe.weight": params["wpe"]}
    for name, x in params["ln_f"].items():
        weights[f"transformer.ln_f.{names[name]}"] = x
    for path, x_L in jax.tree_util.tree_leaves_with_path(params["blocks"]):
        *modules, leaf = (key.key for key in path)
        for layer, x in enumerate(x_L):
            weights[f"transformer.h.{layer}.{'.'.join(modules)}.{names[leaf]}"] = x
    state = {name: torch.tensor(np.asarray(x)) for name, x in weights.items()}
    missing = gpt2.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return gpt2.eval()


@torch.no_grad()
def nanogpt_loop(gpt2: GPT2LMHeadModel, n: int, *, greedy: bool) -> list[int]:
    """What nanoGPT's `GPT.generate` does."""
    ids = torch.tensor([PROMPT])
    for _ in range(n):
        window = ids[:, -gpt2.config.n_positions :]
        x = gpt2.transformer(window, use_cache=False).last_hidden_state
        logits = gpt2.lm_head(x[:, -1]) / TEMPERATURE  # of the last position only, like nanoGPT
        if greedy:
            token = logits.argmax(-1, keepdim=True)
        else:
            logits[logits < torch.topk(logits, TOP_K).values[:, [-1]]] = -torch.inf
            token = torch.multinomial(torch.softmax(logits, -1), 1)
        ids = torch.cat((ids, token), 1)
    return ids[0, len(PROMPT) :].tolist()


@torch.no_grad()
def transformers_generate(gpt2: GPT2LMHeadModel, n: int, *, greedy: bool) -> list[int]:
    sampling = {} if greedy else {"temperature": TEMPERATURE, "top_k": TOP_K}
    ids = torch.tensor([PROMPT])
    tokens = gpt2.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=not greedy,
        use_cache=True,
        pad_token_id=0,
        **sampling,
    )
    return tokens[0, len(PROMPT) :].tolist()


def gptjax_generate(sampler: Sampler, n: int, *, greedy: bool) -> list[int]:
    temperature = 0.0 if greedy else TEMPERATURE
    sampling = Sampling(max_new_tokens=n, temperature=temperature, top_k=TOP_K, top_p=1.0)
    return [i for drawn in sampler.draw([PROMPT], sampling, seeds=[0]) for i in drawn.ids[0]]


def measure(size: str, n: int, rounds: int) -> dict[str, Any]:
    config = gpt_config(size)
    params = gpt.init(config, jax.random.key(0))
    # Initial weights would always give the same token.
    params = jax.tree.map(lambda p: p * 3 if p.std() > 0 else p, params)
    sampler, gpt2 = Sampler(config, params), to_transformers(config, params)
    contenders: dict[str, Callable[..., list[int]]] = {
        "gptjax": lambda n, greedy: gptjax_generate(sampler, n, greedy=greedy),
        "nanogpt_loop": lambda n, greedy: nanogpt_loop(gpt2, n, greedy=greedy),
        "transformers": lambda n, greedy: transformers_generate(gpt2, n, greedy=greedy),
    }
    greedy = {name: run(32, greedy=True) for name, run in contenders.items()}
    assert greedy["gptjax"] == greedy["nanogpt_loop"] == greedy["transformers"], greedy

    def turn(run: Callable[..., list[int]]) -> Callable[[], float]:
        def rate() -> float:
            start = time.perf_counter()
            assert len(run(n, greedy=False)) == n
            return n / (time.perf_counter() - start)

        return rate

    rates = alternate({name: turn(run) for name, run in contenders.items()}, rounds)
    ours = rates["gptjax"]["median"]
    return {
        "size": size,
        "vocab_size": config.vocab_size,
        "block_size": config.block_size,
        "new_tokens": n,
        "same_greedy_tokens": len(greedy["gptjax"]),
        "tokens_per_second": {
            name: {k: round(v, 1) for k, v in values.items()} for name, values in rates.items()
        },
        "over_nanogpt_loop": round(ours / rates["nanogpt_loop"]["median"], 2),
        "over_transformers": round(ours / rates["transformers"]["median"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = arguments.size or list(SIZES)
    results = [measure(size, arguments.new_tokens, arguments.rounds) for size in sizes]
    print(
        json.dumps(
            {"benchmark": "generate", "threads": torch.get_num_threads(), "results": results}
        )
    )


if __name__ == "__main__":
    main()
