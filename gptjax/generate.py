"""Text from a model: one token at a time, drawn with temperature, top-k and top-p.

python -m gptjax.generate --workdir=runs/quickstart --prompt="The "
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array

from configs.flags import UserError, call
from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax import model
from gptjax.load import load_run
from gptjax.model import GPTConfig


def choose(logits_V: Array, key: Array, *, temperature: Array, top_k: int, top_p: Array) -> Array:
    """Draws a token id (int32 scalar).

    Args:
        logits_V: float32.
        key: PRNG key.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens can be drawn; 0 for all.
        top_p: of those, only the smallest set whose probability reaches it (Holtzman et al. 2020).
    """
    k = min(top_k, logits_V.size) if top_k else logits_V.size
    sorted_K, ids_K = jax.lax.top_k(logits_V, k)
    probabilities_K = jax.nn.softmax(sorted_K / jnp.maximum(temperature, 1e-6))
    before_K = jnp.cumsum(probabilities_K) - probabilities_K  # probability of more likely tokens
    kept_K = jnp.where(before_K < top_p, jnp.log(probabilities_K), -jnp.inf)
    drawn = jnp.where(temperature > 0, jax.random.categorical(key, kept_K), 0)
    return ids_K[drawn].astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "top_k"))
def _next_token(
    params: Any,
    window_T: Array,
    length: Array,
    key: Array,
    temperature: Array,
    top_p: Array,
    *,
    config: GPTConfig,
    top_k: int,
) -> Array:
    """Draws the token that follows the first `length` tokens of the window; the rest is ignored."""
    x_1TD = model.hidden_states(config, params, window_T[None])
    x_D = jax.lax.dynamic_index_in_dim(x_1TD[0], length - 1, keepdims=False)
    logits_V = model.logits(config, params, x_D)
    return choose(logits_V, key, temperature=temperature, top_k=top_k, top_p=top_p)


def generate_tokens(
    config: GPTConfig,
    params: Any,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """Yields token ids that continue `prompt`; of a longer text the model sees the last T tokens.

    One compiled step serves every length: the window always has T tokens, and causality keeps what
    lies behind the text from mattering.

    Args:
        config: the model's shape.
        params: its parameters.
        prompt: at least one token id.
        max_new_tokens: how many ids are yielded.
        temperature: see `choose`.
        top_k: see `choose`.
        top_p: see `choose`.
        seed: the same seed draws the same tokens.
    """
    key = jax.random.key(seed)
    text = list(prompt)
    for i in range(max_new_tokens):
        window = np.zeros(config.block_size, np.int32)
        seen = text[-config.block_size :]
        window[: len(seen)] = seen
        token = _next_token(
            params,
            window,
            np.int32(len(seen)),
            jax.random.fold_in(key, i),
            np.float32(temperature),
            np.float32(top_p),
            config=config,
            top_k=top_k,
        )
        text.append(int(token))
        yield text[-1]


def generate_text(
    config: GPTConfig, params: Any, tokenizer: Tokenizer, prompt: str, **sampling: Any
) -> Iterator[str]:
    """Yields the pieces of a continuation as they become whole characters; ends with the document.

    Args:
        config: the model's shape.
        params: its parameters.
        tokenizer: the one the model was trained with.
        prompt: may be empty: a new document.
        **sampling: see `generate_tokens`.
    """
    decoder = StreamDecoder(tokenizer)
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    for token in generate_tokens(config, params, ids, **sampling):
        if token == tokenizer.bos_id:  # the next document would begin
            break
        if piece := decoder.feed([token]):
            yield piece
    # Not flushed: of a character that the text ends within, nothing is shown.


def load(workdir: Path) -> tuple[GPTConfig, Any, Tokenizer]:
    """Returns (model shape, parameters, tokenizer) of a run's best checkpoint.

    Raises:
        UserError: if the folder is no workdir or holds no checkpoint.
    """
    _, gpt, params, tokenizer, _ = load_run(workdir)
    return gpt, params, tokenizer


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    if not 0 < values.top_p <= 1:
        raise UserError(f"--top_p={values.top_p} must be in (0, 1].")
    gpt, params, tokenizer = load(Path(values.workdir))
    sampling = {name: values[name].value for name in ("max_new_tokens", "temperature", "top_k")}
    pieces = generate_text(
        gpt, params, tokenizer, values.prompt, top_p=values.top_p, seed=values.seed, **sampling
    )
    sys.stdout.write(values.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("prompt", "", "Text to continue; empty: a new document.")
    flags.DEFINE_integer("max_new_tokens", 200, "Tokens to draw.", lower_bound=0)
    flags.DEFINE_float("temperature", 0.8, "0: the most likely token each time.", lower_bound=0)
    flags.DEFINE_integer("top_k", 200, "Draw from the k most likely tokens; 0: all.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Draw from the smallest set with this probability.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    app.run(lambda argv: call(_main, argv))
