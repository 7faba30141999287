"""Protect every route: check the key, set headers, write the log line, and catch unexpected errors."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamo_mtl.errors import ConfigError

logger = logging.getLogger(__name__)

LIVE = "/health/live"
"""The only route that needs no key. It says only that the process answers."""
KEY_VARIABLE = "DYNAMO_API_KEY"
REQUEST_ID = "X-Request-ID"
"""Header with the id of a request in the log: the caller's own if it is valid, else a new one."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
SHORTEST_KEY = 16
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def check_key(key: str | None) -> None:
    """Check that a key is valid.

    Raises:
        ConfigError: the key is too short, or has characters that a header cannot hold.
    """
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE}: should be {SHORTEST_KEY} printable ASCII characters or more")


def check_exposure(host: str, key: str | None, insecure: bool) -> None:
    """Check that other machines cannot use the server without a key, unless ``insecure`` allows it.

    Raises:
        ConfigError: the address can be reached from other machines and there is no key, or the key is not valid.
    """
    check_key(key)
    if key is None and host not in LOOPBACK and not insecure:
        raise ConfigError(
            f"serving.host: {host} can be reached from other machines; set {KEY_VARIABLE}, or say --insecure"
        )


def failure(
    status: int, error_type: str, message: str, request_id: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Build the response of an error."""
    content = {"error": message, "error_type": error_type, "request_id": request_id}
    return JSONResponse(content, status, headers)


def path_of(scope: Scope) -> str:
    """The path of a request as this application knows it, without the one under which a proxy offers it."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path", ""))) or "/"


class Guard:
    """Middleware that checks the key before the application runs, and hides the details of uncaught errors."""

    def __init__(self, app: ASGIApp, key: str | None, done: Callable[[str, int, float], None]) -> None:
        """
        Args:
            app: application to guard.
            key: key that requests must have; none is needed if None.
            done: called with route, status and seconds of every request.
        """
        self.app, self.key, self.done = app, key, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if self._is_allowed(scope):
                await self.app(scope, receive, send_on)
            else:
                wanted = {"WWW-Authenticate": 'Bearer, Basic realm="DYNAMO"'}
                refusal = failure(
                    401, "authentication", "send the header Authorization: Bearer KEY", request_id, wanted
                )
                await refusal(scope, receive, send_on)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise  # a part of the response was sent, so it can only be cut off
            await failure(500, "internal", "the server made a mistake; its log has more under this id", request_id)(
                scope, receive, send_on
            )
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.done(route, status, seconds)
            logger.info("%s %s %d %.1f ms %s", scope["method"][:10], route, status, 1000 * seconds, request_id)

    def _is_allowed(self, scope: Scope) -> bool:
        if self.key is None or path_of(scope) == LIVE:
            return True
        given = _credentials(Headers(scope=scope).get("authorization", ""))
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.key.encode())


def _credentials(header: str) -> str:
    """Return the key in a header: a bearer token, or the password of basic authentication with any user name."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""
