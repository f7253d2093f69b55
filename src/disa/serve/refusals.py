"""Requests that are not answered with images, and how that is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from disa.errors import DisaError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(DisaError):
    """A request that is not answered with images."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, retry_after: int | None = None
    ) -> None:
        """param: the field of the body that is wrong. retry_after: seconds after which to try again."""
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's API tells errors."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


@contextmanager
def refusing(param: str | None) -> Iterator[None]:
    """What disa refuses within is the fault of this field of the body."""
    try:
        yield
    except Refused:
        raise
    except DisaError as error:
        raise Refused(str(error), param=param) from error
