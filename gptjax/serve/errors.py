"""Errors as OpenAI's clients read them."""

import json

from starlette.responses import Response


class APIError(Exception):
    """An HTTP status and the JSON object `error` that OpenAI's clients read."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> Response:
        """Returns the answer; not a JSONResponse, which cannot encode a lone surrogate."""
        return Response(json.dumps(self.body), self.status, media_type="application/json")
