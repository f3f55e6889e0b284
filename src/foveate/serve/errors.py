"""Errors as OpenAI's clients read them: a status, a type, a message without paths or traces."""

from __future__ import annotations

from typing import Any

from foveate.errors import FoveateError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(FoveateError):
    """What a client gets in place of an answer.

    Parameters
    ----------
    status
        Of HTTP.
    message
        What is wrong, and what would be right.
    code
        One word for programs.
    param
        The field of the request that is wrong.
    retry_after
        Seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error of a request that is wrong in itself."""
    return ApiError(400, message, code, param=param)
