"""Log-probabilities of given tokens, for every evaluation.

Requests are padded to `block_size` or one of its halves, with a fixed batch size for each length,
so that `token_scores` is compiled only a few times. Only the requested positions reach the head,
whose logits and softmax are float32.
"""

import collections
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from data_pipeline.progress import BatchProgress
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.one_ahead import one_ahead
from gptjax.model import GPTConfig, gpt

_HALVINGS = 4  # the shortest padded length is block_size / 16
_BATCH_TOKENS = 8192  # of a batch, padding included, so that batches take about the same time
_MIN_ROWS = 8
_CHUNK = 512  # positions whose logits exist at a time

Request = tuple[Sequence[int], Sequence[int]]  # ids of a context and of its continuation, not empty


class Score(NamedTuple):
    """The score of a continuation."""

    log_likelihood: float  # nats, summed over its tokens in float64
    is_greedy: bool  # whether each token is the most likely one


@functools.partial(jax.jit, static_argnames="model_config")
def token_scores(
    params: Any, batch: dict[str, Array], *, model_config: GPTConfig
) -> tuple[Array, Array]:
    """Scores the targets where the mask is True.

    `batch` has `inputs`, `targets` (int32) and `loss_mask` (bool), all [B, T]; and, to separate
    documents, `segment_ids` and `positions`.

    Returns:
        (float32 [B, T], log-probability of each target; bool [B, T], whether it is the most likely
        token); 0 and False where the mask is False.
    """
    x_BTD = gpt.hidden_states(
        model_config,
        params,
        batch["inputs"],
        positions_BT=batch.get("positions"),
        segment_ids_BT=batch.get("segment_ids"),
    )
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    targets_M, mask_M = batch["targets"].reshape(-1), batch["loss_mask"].reshape(-1)
    kept_first_M = jnp.argsort(~mask_M, stable=True)
    chunk = min(_CHUNK, mask_M.size)

    def score_chunk(i: Array, scores: tuple[Array, Array]) -> tuple[Array, Array]:
        # If C does not divide M, the last slice overlaps the one before.
        index_C = jax.lax.dynamic_slice_in_dim(kept_first_M, i * chunk, chunk)
        targets_C = targets_M[index_C]
        logits_CV = gpt.logits(model_config, params, x_MD[index_C])
        target_logits_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
        log_probs_M, greedy_M = scores
        return (
            log_probs_M.at[index_C].set(target_logits_C - jax.nn.logsumexp(logits_CV, axis=1)),
            greedy_M.at[index_C].set(jnp.argmax(logits_CV, axis=1) == targets_C),
        )

    n_chunks = -(-jnp.sum(mask_M) // chunk)  # traced: chunks without targets cost nothing
    log_probs_M, greedy_M = jax.lax.fori_loop(
        0, n_chunks, score_chunk, (jnp.zeros(mask_M.size), jnp.zeros(mask_M.size, bool))
    )
    shape = batch["inputs"].shape
    return jnp.where(mask_M, log_probs_M, 0).reshape(shape), (greedy_M & mask_M).reshape(shape)


class ScoredTokens(NamedTuple):
    """T tokens of each row, with the model's own log-probabilities (natural, float32)."""

    ids: Any  # int32 (B, T)
    logprobs: Any  # (B, T)
    top_ids: Any  # int32 (B, T, J), the J most likely tokens of each position
    top_logprobs: Any  # (B, T, J)


def score_tokens(logits_BV: Array, ids_B: Array, n_top: int) -> ScoredTokens:
    """Returns the scores of one token a row, without the axis T."""
    logprobs_BV = jax.nn.log_softmax(logits_BV)
    logprobs_B = jnp.take_along_axis(logprobs_BV, ids_B[:, None], axis=1)[:, 0]
    top_logprobs_BJ, top_ids_BJ = jax.lax.top_k(logprobs_BV, n_top)
    return ScoredTokens(ids_B, logprobs_B, top_ids_BJ, top_logprobs_BJ)


def prompt_scores(
    model_config: GPTConfig, params: Any, rows: Sequence[Sequence[int]], n_top: int
) -> list[ScoredTokens]:
    """Scores every token of `rows`, none longer than block_size; of each, NumPy arrays without B.

    Without meaning are the scores of a row's first token, and what follows its end. Rows are
    computed one by one, so that each length is compiled only once.
    """
    lengths = padded_lengths(model_config.block_size)
    scores = []
    for row in rows:
        (tokens_T,) = padded([row], next(length for length in lengths if length >= len(row)))
        scores.append(_next_scores(model_config, params, tokens_T, n_top))
    # From the position that predicts a token to the token's own.
    return [ScoredTokens(*(np.roll(x, 1, axis=0) for x in row)) for row in jax.device_get(scores)]


@functools.partial(jax.jit, static_argnames=("model_config", "n_top"))
def _next_scores(model_config: GPTConfig, params: Any, tokens_T: Array, n_top: int) -> ScoredTokens:
    """Scores token t + 1 at position t."""
    x_1TD = gpt.hidden_states(model_config, params, tokens_T[None])
    return score_tokens(gpt.logits(model_config, params, x_1TD[0]), jnp.roll(tokens_T, -1), n_top)


def encode_request(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Returns the ids of a context and its continuation, split like lm-eval 0.4.13.

    White space at the end of the context belongs to the continuation, and the two are encoded
    together. BOS precedes every context, also an empty one, as it did every training document.
    """
    stripped = context.rstrip()
    context_ids = tokenizer.encode(stripped).tolist()
    whole_ids = tokenizer.encode(context + continuation).tolist()
    return [tokenizer.bos_id, *context_ids], whole_ids[len(context_ids) :]


def padded_lengths(block_size: int, halvings: int = 1) -> list[int]:
    """Returns the lengths to which rows are padded, shortest first, `halvings` from each other."""
    return sorted({-(-block_size // 2**k) for k in range(0, _HALVINGS + 1, halvings)})


def padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Returns int32 (B, length): the rows, filled with zeros at their ends."""
    tokens_BT = np.zeros((len(rows), length), np.int32)
    for row, tokens in zip(tokens_BT, rows, strict=True):
        row[: len(tokens)] = tokens
    return tokens_BT


def rows_per_batch(length: int) -> int:
    """Returns the number of rows of `length` tokens in a batch."""
    return max(_MIN_ROWS, _BATCH_TOKENS // length)


class _Row(NamedTuple):
    request: int  # its index
    tokens: list[int]  # at most block_size + 1
    n_targets: int  # at the end


class Scorer:
    """Scores requests with one model."""

    def __init__(self, model_config: GPTConfig, params: Any):
        """Compiles nothing; programs of earlier scorers of the same shape are reused."""
        self.model_config = model_config
        self._params = params
        self.lengths = padded_lengths(model_config.block_size)

    def score(self, requests: Sequence[Request], name: str | None = None) -> list[Score]:
        """Returns the scores of the requests, in order; with a `name`, progress is shown.

        A context that is too long loses its beginning, BOS included, as in lm-eval. A continuation
        longer than `block_size` is scored in parts of half a row, each after what precedes it
        (lm-eval's own models refuse it). Raises ValueError where one of the two is empty.
        """
        rows = [row for i, request in enumerate(requests) for row in self._rows(i, request)]
        batches = self._batches(rows)
        log_likelihoods = np.zeros(len(requests))
        greedy = np.ones(len(requests), bool)
        dispatched = ((same, self._dispatch(length, same)) for length, same in batches)
        with BatchProgress(name, "requests", len(rows), len(batches)) as progress:
            for batch_rows, scores in one_ahead(dispatched):
                log_probs_BT, greedy_BT = jax.device_get(scores)
                for b, row in enumerate(batch_rows):
                    end = len(row.tokens) - 1
                    targets = slice(end - row.n_targets, end)
                    log_likelihoods[row.request] += log_probs_BT[b, targets].sum(dtype=float)
                    greedy[row.request] &= greedy_BT[b, targets].all()
                progress.advance(len(batch_rows))
        return [Score(float(x), bool(g)) for x, g in zip(log_likelihoods, greedy, strict=True)]

    def _rows(self, index: int, request: Request) -> Iterable[_Row]:
        context, continuation = list(request[0]), list(request[1])
        if not context or not continuation:
            raise ValueError(f"request {index}: the context or the continuation has no tokens")
        longest = self.model_config.block_size
        part = len(continuation) if len(continuation) <= longest else max(1, longest // 2)
        for start in range(0, len(continuation), part):
            stop = min(start + part, len(continuation))
            tokens = (context + continuation[:stop])[-(longest + 1) :]
            yield _Row(index, tokens, stop - start)

    def _batches(self, rows: Iterable[_Row]) -> list[tuple[int, list[_Row]]]:
        """Groups rows by padded length, longest first, so that lack of memory shows early."""
        by_length = collections.defaultdict[int, list[_Row]](list)
        for row in rows:
            by_length[next(n for n in self.lengths if n >= len(row.tokens) - 1)].append(row)
        batches = []
        for length, same in sorted(by_length.items(), reverse=True):
            size = rows_per_batch(length)
            batches += [(length, same[i : i + size]) for i in range(0, len(same), size)]
        return batches

    def _dispatch(self, length: int, rows: Sequence[_Row]) -> tuple[Array, Array]:
        shape = (rows_per_batch(length), length)
        inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, bool)
        for b, row in enumerate(rows):
            end = len(row.tokens) - 1
            inputs[b, :end], targets[b, :end] = row.tokens[:-1], row.tokens[1:]
            mask[b, end - row.n_targets : end] = True
        batch = {"inputs": inputs, "targets": targets, "loss_mask": mask}
        return token_scores(self._params, batch, model_config=self.model_config)
