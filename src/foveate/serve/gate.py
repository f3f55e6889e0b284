"""What a request passes before anything of it is read: key, limits of number and size; and its log line."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveate.serve.errors import ApiError
from foveate.serve.service import Service
from foveate.serve.worker import where

logger = logging.getLogger(__name__)
GUARDED = "/v1/"
COUNTED = "/v1/chat/completions"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """Middleware of ASGI.

    Parameters
    ----------
    app
        What comes after it.
    service
        Whose settings hold.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.keys = [_digest(key) for key in service.settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, identity, status = time.monotonic(), secrets.token_hex(8), 0
        scope.setdefault("state", {})["request_id"] = identity

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identity.encode())]}
            await send(message)

        path, running, who = scope["path"], self.service.running, None
        try:
            try:
                who = self._enter(scope)
                await self.app(scope, self._bounded(receive), answer)
            except Exception as error:  # noqa: BLE001 - a server's log would have its message, with what a user wrote
                if not isinstance(error, ApiError):
                    logger.error("%s: %s %s", identity, type(error).__name__, where(error))
                    error = ApiError(500, "the server made an error", "internal_error")
                if not status:
                    await JSONResponse(error.body(), error.status, error.headers)(scope, receive, answer)
        finally:
            if who is not None:
                running[who] -= 1
                if not running[who]:
                    del running[who]
            if path == COUNTED:
                self.service.metrics.requests.labels(str(status)).inc()
                self.service.metrics.seconds.observe(time.monotonic() - begin)
            level = (
                logging.INFO if path.startswith(GUARDED) else logging.DEBUG
            )  # health is asked for every few seconds
            took = time.monotonic() - begin
            logger.log(level, "%s %s %r %d %.3f s", identity, scope["method"], path[:64], status, took)

    def _enter(self, scope: Scope) -> str | None:
        """Return under which key or address a request is counted; None where it is not.

        Raises
        ------
        ApiError
            It must not pass.
        """
        headers = dict(scope["headers"])
        if not scope["path"].startswith(GUARDED):
            return None
        who = (scope.get("client") or ("?",))[0]
        if self.keys:
            kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            given = _digest(key.strip())
            # all are looked at, however soon one fits
            fits = [hmac.compare_digest(given, known) for known in self.keys]
            if kind.lower() != "bearer" or not any(fits):
                raise ApiError(401, "the API key is missing or not valid", "invalid_api_key")
            who = f"key {fits.index(True)}"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.service.settings.max_body:
            raise self._too_large()
        if scope["path"] != COUNTED or scope["method"] != "POST":
            return None
        if self.service.closing:
            raise ApiError(503, "the server is shutting down", "shutting_down", retry_after=5)
        running, settings = self.service.running, self.service.settings
        if sum(running.values()) >= settings.max_requests:
            raise ApiError(429, "too many requests wait: try again later", "queue_full", retry_after=1)
        if running.get(who, 0) >= settings.max_per_key:
            raise ApiError(429, "too many requests of one client at once", "too_many_requests", retry_after=1)
        running[who] = running.get(who, 0) + 1
        return who

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def bounded() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.service.settings.max_body:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        most = self.service.settings.max_body
        return ApiError(413, f"a request has at most {most} bytes", "request_too_large")
