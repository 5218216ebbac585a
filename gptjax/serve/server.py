"""A server with OpenAI's completions API and a page to try a model on, on this machine.

    python -m gptjax.serve --workdir=runs/quickstart

There is one model: requests wait for each other, in the order they come. Needs the extra `serve`.
"""

import contextlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from gptjax.inference.sampler import Sampler, Sampling
from gptjax.serve import completions, protocol
from gptjax.serve.completions import Piece
from gptjax.serve.protocol import APIError, Completion

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "static" / "index.html"
_MAX_BODY = 1 << 20  # bytes
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    # The page needs nothing from elsewhere, and may not be shown inside other pages.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Engine:
    """The model and the queue before it."""

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer, model_name: str):
        import asyncio

        self.tokenizer = tokenizer
        self.model_name = model_name
        self._sampler = sampler
        self._turn = asyncio.Lock()  # first come, first served

    def warm_up(self) -> None:
        """Compiles what the first request would have to wait for."""
        sampling = Sampling(max_new_tokens=3, temperature=1.0, top_k=0, top_p=1.0)
        rows = [[self.tokenizer.bos_id]]
        for _ in self._sampler.draw(rows, sampling, seeds=[0], n_top=protocol.N_TOP):
            pass

    def parse(self, body: Any) -> Completion:
        """Checks a request: see `completion_request.parse`."""
        return protocol.parse(
            body,
            tokenizer=self.tokenizer,
            block_size=self._sampler.model_config.block_size,
            model_name=self.model_name,
        )

    async def run(self, request: Completion, used: dict[str, int]) -> AsyncGenerator[list[Piece]]:
        """Yields what `completions.complete` does, when it is this request's turn."""
        from anyio import to_thread

        async with self._turn:
            pieces = completions.complete(self._sampler, self.tokenizer, request, used)
            # A client that leaves cancels this between two chunks: a chunk in a thread is waited
            # for, so that no two requests ever run at once.
            while (chunk := await to_thread.run_sync(next, pieces, None)) is not None:
                yield chunk


def build_app(engine: Engine, *, token: str | None, hosts: tuple[str, ...] | None) -> Any:
    """Returns the FastAPI application.

    Args:
        engine: answers.
        token: what `Authorization: Bearer` must give under /v1; None: nothing.
        hosts: names by which the server may be called; None: any. A page of another site that
            made its own name mean 127.0.0.1 could read the answers otherwise (DNS rebinding).
    """
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException

    created = int(time.time())

    def check(request: Request) -> None:
        if hosts is not None and (request.url.hostname or "") not in hosts:
            raise APIError(f"Call this server by one of {', '.join(hosts)}.", status=403)
        if token is None or not request.url.path.startswith("/v1/"):
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise APIError("A token is needed: Authorization: Bearer ...", status=401)

    # No /docs: those pages load their scripts from elsewhere.
    application = FastAPI(
        title="gptjax", docs_url=None, redoc_url=None, dependencies=[Depends(check)]
    )

    @application.exception_handler(APIError)
    async def api_error(_: Request, error: APIError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @application.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(APIError(str(error.detail)).body, error.status_code)

    @application.exception_handler(Exception)
    async def server_error(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_server_error(error).body, 500)

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
            message = f"The model {name!r} does not exist."
            raise APIError(message, status=404, param="model", code="model_not_found")
        return model_json(name)

    @application.post("/v1/completions")
    async def create(request: Request) -> Any:
        completion = engine.parse(await _json_body(request))
        used: dict[str, int] = {}
        answer = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": engine.model_name,
        }
        pieces = engine.run(completion, used)
        if completion.stream:
            events = _events(pieces, completion, answer, used)
            return StreamingResponse(events, media_type="text/event-stream")
        texts = ["" for _ in completion.rows]
        tokens: list[list[completions.Token]] = [[] for _ in completion.rows]
        reasons: list[str | None] = [None for _ in completion.rows]
        async with contextlib.aclosing(pieces):
            async for chunk in pieces:
                for piece in chunk:
                    texts[piece.index] += piece.text
                    tokens[piece.index] += piece.tokens
                    reasons[piece.index] = piece.finish_reason
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody reads it
        choices = [
            _choice(Piece(i, texts[i], tokens[i], reasons[i]), completion)
            for i in range(len(texts))
        ]
        return {**answer, "choices": choices, "usage": used}

    return application


def _server_error(error: Exception) -> APIError:
    _log.error("a request failed", exc_info=error)
    return APIError("The server failed; its log tells why.", status=500, type="server_error")


async def _json_body(request: Any) -> Any:
    """Reads a body of bounded size.

    Only what is called JSON is read: pages of other sites cannot send that without being asked for
    permission first (CORS), which is never given.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError("Send JSON, with the header Content-Type: application/json.", status=415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise APIError(f"The body is longer than {_MAX_BODY:,} bytes.", status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise APIError(f"The body is no JSON: {error}.") from error


def _choice(piece: Piece, completion: Completion) -> dict[str, Any]:
    logprobs = None
    if completion.logprobs is not None:
        logprobs = completions.logprobs_json(piece.tokens)
    return {
        "index": piece.index,
        "text": piece.text,
        "logprobs": logprobs,
        "finish_reason": piece.finish_reason,
    }


async def _events(
    pieces: AsyncIterator[list[Piece]],
    completion: Completion,
    answer: dict[str, Any],
    used: dict[str, int],
) -> AsyncIterator[str]:
    """Yields server-sent events: one for each piece, the usage if wanted, and [DONE]."""
    usage = {"usage": None} if completion.include_usage else {}
    try:
        async for chunk in pieces:
            for piece in chunk:
                yield _event({**answer, "choices": [_choice(piece, completion)], **usage})
    except Exception as error:  # the status has been sent already
        yield _event(_server_error(error).body)
        return
    if completion.include_usage:
        yield _event({**answer, "choices": [], "usage": used})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
