"""Who may call: requests by the server's own name, and with its token."""

import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gptjax.serve.errors import APIError

_OPEN = (
    "/",
    "/health",
)  # paths without the token: a page without data, and whether the server runs


class Guard:
    """An application whose requests reach `application` only if they may.

    They must call the server by one of `hosts`, or by any name if None: a page of another site that
    pointed its own name at 127.0.0.1 could read the answers otherwise (DNS rebinding). They must
    send `Authorization: Bearer token`, unless it is None.
    """

    def __init__(self, application: ASGIApp, *, hosts: Sequence[str] | None, token: str | None):
        self._application, self._hosts, self._token = application, hosts, token
        names = "|".join(re.escape(f"[{host}]" if ":" in host else host) for host in hosts or ())
        self._host = re.compile(rf"(?:{names})(?::[0-9]{{1,5}})?", re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it with an error."""
        try:
            self._check(Headers(scope=scope), scope["path"])
        except APIError as error:
            await error.response()(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        if self._hosts and not self._host.fullmatch(headers.get("host", "")):
            raise APIError(f"Call this server by one of {', '.join(self._hosts)}.", status=403)
        if self._token is None or path in _OPEN:
            return
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise APIError("A token is needed: Authorization: Bearer ...", status=401)
