"""An application with OpenAI's two completions APIs, and a page to try a model on."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gptjax.serve import chat_protocol, protocol
from gptjax.serve.access import Guard
from gptjax.serve.answers import Answer, ChatAnswer, TextAnswer
from gptjax.serve.completions import CompletionChunk
from gptjax.serve.engine import Engine
from gptjax.serve.errors import APIError
from gptjax.serve.protocol import Completion

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "static" / "index.html"
_MAX_BODY = 1 << 20  # bytes
_HEADERS = {
    # The page loads nothing from other sites, and no other site can frame it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def build_app(engine: Engine, *, token: str | None, hosts: Sequence[str] | None) -> FastAPI:
    """Returns the application; requests must pass a `Guard` with this token and these hosts."""
    created = int(time.time())
    application = FastAPI(
        openapi_url=None,  # the documentation pages load scripts from other sites
        redirect_slashes=False,
        exception_handlers={
            APIError: _error_response,
            HTTPException: _error_response,
            Exception: _error_response,
            ClientDisconnect: _no_response,
        },
    )
    application.add_middleware(Guard, hosts=hosts, token=token)

    def model_json(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "gptjax"}

    @application.get("/")
    def page() -> Response:
        return FileResponse(_PAGE, headers=_HEADERS)

    @application.get("/health")
    async def health() -> Any:
        return {"status": "ok", "requests": engine.n_requests}

    @application.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [model_json(engine.model_name)]}

    @application.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        if name != engine.model_name:
            raise protocol.unknown_model(name, engine.model_name)
        return model_json(name)

    async def answered(request: Request, parse: Any, form: Callable[..., Answer]) -> Any:
        """Answers a request that `parse` validates."""
        completion = await run_in_threadpool(
            parse,
            await _json_body(request),
            tokenizer=engine.tokenizer,
            block_size=engine.block_size,
            model_name=engine.model_name,
        )
        answer = form(completion, engine.model_name)
        steps = engine.run(completion)
        if completion.parameters.stream:
            events = _events(steps, completion, answer)
            closed = BackgroundTask(steps.aclose)  # also when the client has left
            return StreamingResponse(events, media_type="text/event-stream", background=closed)
        whole = asyncio.create_task(_whole(steps, completion, answer))
        left = asyncio.create_task(_disconnect(request))
        await asyncio.wait((whole, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not whole.done():
            whole.cancel()
            raise ClientDisconnect
        return await whole

    @application.post("/v1/completions")
    async def complete(request: Request) -> Any:
        return await answered(request, protocol.parse, TextAnswer)

    @application.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        if not engine.has_chat:
            raise APIError(
                f"{engine.model_name!r} has no chat template: it continues texts and was not "
                "trained to converse. Use /v1/completions.",
                code="no_chat_template",
            )
        return await answered(request, chat_protocol.parse, ChatAnswer)

    return application


async def _disconnect(request: Request) -> None:
    """Returns when the client has left; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, HTTPException):
        return APIError(str(error.detail), status=error.status_code)
    _log.error("a request failed", exc_info=error)
    return APIError("The server failed: see its log.", status=500, type="server_error")


async def _error_response(_: Request, error: Exception) -> Response:
    return _as_api_error(error).response()


async def _no_response(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nginx's code: the client closed the request


async def _json_body(request: Request) -> Any:
    """Reads a JSON body of bounded size.

    The content type must be JSON: browsers do not let pages of other sites send that without the
    server's permission (CORS), which is never given.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise APIError("Send JSON, with the header Content-Type: application/json.", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise APIError(f"The body is longer than {_MAX_BODY:,} bytes.", status=413)
    try:
        return json.loads(body.decode())  # bytes could also be UTF-16, or have lone surrogates
    except (ValueError, RecursionError) as error:
        raise APIError(f"The body is not valid JSON: {error}.") from error


async def _whole(
    steps: AsyncGenerator[list[CompletionChunk]], completion: Completion, answer: Answer
) -> dict[str, Any]:
    """Returns the answer in one piece."""
    chunks_of: list[list[CompletionChunk]] = [[] for _ in completion.rows]
    async with contextlib.aclosing(steps):
        async for chunks in steps:
            for chunk in chunks:
                chunks_of[chunk.choice].append(chunk)
    usage = completion.usage(sum(chunk.n_drawn for chunks in chunks_of for chunk in chunks))
    choices = [answer.choice(chunks) for chunks in chunks_of]
    return {**answer.whole, "choices": choices, "usage": usage}


async def _events(
    steps: AsyncIterator[list[CompletionChunk]], completion: Completion, answer: Answer
) -> AsyncIterator[str]:
    """Yields server-sent events: one for each chunk, the usage if requested, and [DONE]."""
    include_usage = completion.parameters.stream_options.include_usage
    usage = {"usage": None} if include_usage else {}
    n_drawn = 0
    try:
        async for chunks in steps:
            for chunk in chunks:
                n_drawn += chunk.n_drawn
                yield _event({**answer.event, "choices": [answer.part(chunk)], **usage})
    except Exception as error:  # the status has been sent already
        yield _event(_as_api_error(error).body)
        return
    if include_usage:
        yield _event({**answer.event, "choices": [], "usage": completion.usage(n_drawn)})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
