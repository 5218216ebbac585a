"""The model and the queue before it: requests are computed one after the other."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.concurrency import iterate_in_threadpool

from data_pipeline.chat import has_markers
from data_pipeline.tokenizer import Tokenizer
from gptjax.inference import Sampler, scoring
from gptjax.serve import completions, protocol
from gptjax.serve.completions import CompletionChunk
from gptjax.serve.errors import APIError
from gptjax.serve.protocol import Completion

MAX_REQUESTS = 200  # that wait or are computed


class Engine:
    """The model, and the requests that wait for it in the order they arrive."""

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer, model_name: str):
        self.model_name, self.tokenizer = model_name, tokenizer
        self.has_chat = has_markers(tokenizer)
        self.block_size = sampler.model_config.block_size
        self.n_requests = 0  # that wait or are computed
        self._sampler = sampler
        self._lock = asyncio.Lock()  # first come, first served

    def warm_up(self) -> None:
        """Compiles every program that a request can need."""
        self._sampler.warm_up(protocol.MAX_ROWS, protocol.N_TOP)
        rows = [[0] * length for length in scoring.padded_lengths(self.block_size)]
        scoring.prompt_scores(
            self._sampler.model_config, self._sampler.params, rows, protocol.N_TOP
        )

    def run(self, request: Completion) -> AsyncGenerator[list[CompletionChunk]]:
        """Yields from `completions.complete` when it is this request's turn; close it at its end.

        The model waits for no client: it computes while the receiver is busy. Raises APIError if
        too many requests wait.
        """
        if self.n_requests >= MAX_REQUESTS:
            raise APIError(
                f"The server is busy: {MAX_REQUESTS} requests are waiting. Try again later.",
                status=503,
                type="server_error",
            )
        return self._steps(request)

    async def _steps(self, request: Completion) -> AsyncGenerator[list[CompletionChunk]]:
        # Room for a whole answer, at least a token a step, and its end: put_nowait cannot fail.
        steps = asyncio.Queue[list[CompletionChunk] | None](self.block_size + 2)
        self.n_requests += 1
        task = asyncio.create_task(self._compute(request, steps))
        try:
            while (step := await steps.get()) is not None:
                yield step
            await task  # raises what it raised
        finally:
            # Leaves the queue, or ends after the current step: steps of two requests never overlap.
            task.cancel()
            self.n_requests -= 1

    async def _compute(
        self, request: Completion, steps: asyncio.Queue[list[CompletionChunk] | None]
    ) -> None:
        try:
            async with self._lock:
                chunks = completions.complete(self._sampler, self.tokenizer, request)
                async for step in iterate_in_threadpool(chunks):
                    steps.put_nowait(step)
        finally:
            steps.put_nowait(None)
