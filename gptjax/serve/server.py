"""A FastAPI application with OpenAI's completions API, and a page to try a model on.

There is one model: requests wait for each other, in the order they arrive.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException

from data_pipeline.tokenizer import Tokenizer
from gptjax.inference import Sampler, Sampling
from gptjax.serve import completions, protocol
from gptjax.serve.completions import CompletionChunk
from gptjax.serve.protocol import APIError, Completion

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "static" / "index.html"
_MAX_BODY = 1 << 20  # bytes
_HEADERS = {
    # The page loads nothing from other sites, and no other site can frame it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Engine:
    """The model and the queue before it."""

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer, model_name: str):
        self.model_name = model_name
        self._sampler, self.tokenizer = sampler, tokenizer
        self.block_size = sampler.model_config.block_size
        self._lock = asyncio.Lock()  # first come, first served

    def warm_up(self) -> None:
        """Compiles the programs of the first request."""
        sampling = Sampling(max_new_tokens=3, temperature=1.0, top_k=0, top_p=1.0)
        rows = [[self.tokenizer.bos_id]]
        for _ in self._sampler.draw(rows, sampling, seeds=[0], n_top=protocol.N_TOP):
            pass

    async def run(self, request: Completion) -> AsyncGenerator[list[CompletionChunk]]:
        """Yields from `completions.complete` when it is this request's turn."""
        async with self._lock:
            chunks = completions.complete(self._sampler, self.tokenizer, request)
            # A client that disconnects cancels this between two steps: a step in a thread runs to
            # its end, so that two requests never compute at once.
            async for step in iterate_in_threadpool(chunks):
                yield step


def build_app(engine: Engine, *, token: str | None, hosts: tuple[str, ...] | None) -> FastAPI:
    """Returns the application.

    Requests under /v1 must send `Authorization: Bearer token`, unless it is None. They must call
    the server by one of `hosts`, or by any name if None: a page of another site that pointed its
    own name at 127.0.0.1 could read the answers otherwise (DNS rebinding).
    """
    created = int(time.time())

    def check(request: Request) -> None:
        if hosts is not None and (request.url.hostname or "") not in hosts:
            raise APIError(f"Call this server by one of {', '.join(hosts)}.", status=403)
        if token is None or not request.url.path.startswith("/v1/"):
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise APIError("A token is needed: Authorization: Bearer ...", status=401)

    application = FastAPI(
        title="gptjax",
        docs_url=None,  # the documentation pages load scripts from other sites
        redoc_url=None,
        dependencies=[Depends(check)],
        exception_handlers=dict.fromkeys((APIError, HTTPException, Exception), _error_response),
    )

    def model_json(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "gptjax"}

    @application.get("/")
    def page() -> Response:
        return FileResponse(_PAGE, headers=_HEADERS)

    @application.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [model_json(engine.model_name)]}

    @application.get("/v1/models/{name:path}")
    def one_model(name: str) -> Any:
        if name != engine.model_name:
            raise protocol.unknown_model(name, engine.model_name)
        return model_json(name)

    @application.post("/v1/completions")
    async def create(request: Request) -> Any:
        completion = protocol.parse(
            await _json_body(request),
            tokenizer=engine.tokenizer,
            block_size=engine.block_size,
            model_name=engine.model_name,
        )
        answer = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": engine.model_name,
        }
        steps = engine.run(completion)
        if completion.parameters.stream:
            events = _events(steps, completion, answer)
            return StreamingResponse(events, media_type="text/event-stream")
        chunks_of: list[list[CompletionChunk]] = [[] for _ in completion.rows]
        async with contextlib.aclosing(steps):
            async for chunks in steps:
                for chunk in chunks:
                    chunks_of[chunk.choice].append(chunk)
                if await request.is_disconnected():
                    return Response(status_code=499)  # nginx's code: the client closed the request
        usage = completion.usage(sum(chunk.n_drawn for chunks in chunks_of for chunk in chunks))
        choices = [_choice_json(chunks, completion) for chunks in chunks_of]
        return {**answer, "choices": choices, "usage": usage}

    return application


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, HTTPException):
        return APIError(str(error.detail), status=error.status_code)
    _log.error("a request failed", exc_info=error)
    return APIError("The server failed: see its log.", status=500, type="server_error")


async def _error_response(_: Request, error: Exception) -> Response:
    error = _as_api_error(error)
    # Not a JSONResponse, which cannot encode a lone surrogate of the request.
    return Response(json.dumps(error.body), error.status, media_type="application/json")


async def _json_body(request: Request) -> Any:
    """Reads a JSON body of bounded size.

    The content type must be JSON: browsers do not let pages of other sites send that without the
    server's permission (CORS), which is never given.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise APIError("Send JSON, with the header Content-Type: application/json.", status=415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise APIError(f"The body is longer than {_MAX_BODY:,} bytes.", status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise APIError(f"The body is not valid JSON: {error}.") from error


def _choice_json(chunks: list[CompletionChunk], completion: Completion) -> dict[str, Any]:
    """Returns consecutive chunks of a choice as one."""
    tokens = [token for chunk in chunks for token in chunk.tokens]
    scored = completion.parameters.logprobs is not None
    return {
        "index": chunks[0].choice,
        "text": "".join(chunk.text for chunk in chunks),
        "logprobs": completions.logprobs_json(tokens) if scored else None,
        "finish_reason": chunks[-1].finish_reason,
    }


async def _events(
    steps: AsyncIterator[list[CompletionChunk]], completion: Completion, answer: dict[str, Any]
) -> AsyncIterator[str]:
    """Yields server-sent events: one for each chunk, the usage if requested, and [DONE]."""
    include_usage = (completion.parameters.stream_options or {}).get("include_usage")
    usage = {"usage": None} if include_usage else {}
    n_drawn = 0
    try:
        async for chunks in steps:
            for chunk in chunks:
                n_drawn += chunk.n_drawn
                yield _event({**answer, "choices": [_choice_json([chunk], completion)], **usage})
    except Exception as error:  # the status has been sent already
        yield _event(_as_api_error(error).body)
        return
    if include_usage:
        yield _event({**answer, "choices": [], "usage": completion.usage(n_drawn)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
