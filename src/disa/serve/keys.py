"""Who may ask: keys from a file, and what a browser may be made to send to a server without keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from disa.errors import DisaError
from disa.reading import read_bounded
from disa.serve.refusals import Refused

LONGEST_FILE, SHORTEST_KEY = 1 << 16, 16


class Keys:
    """The keys of a server; where there are none, requests must be meant for this machine."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        # As hashes they are equally long, so that a comparison tells nothing of a key by its time.
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, file: Path) -> Keys:
        """A key on each line; empty lines and those that begin with # are left out. Raises DisaError."""
        content = read_bounded(file, LONGEST_FILE, "the keys")
        try:
            lines = [line.strip() for line in content.decode("ascii").splitlines()]
        except UnicodeDecodeError as error:
            raise DisaError(f"keys are printable ASCII characters, one key a line: {file} holds others.") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise DisaError(f"there is no key in {file}: expected one a line, as `openssl rand -hex 24` makes them.")
        if any(len(key) < SHORTEST_KEY or not key.isprintable() or " " in key for key in keys):
            raise DisaError(f"a key has {SHORTEST_KEY} characters or more and no spaces: {file} holds another one.")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, authorization: str | None, host: str | None) -> None:
        """The headers of a request. Raises Refused."""
        if not self:
            # A page of another site can have its own name lead here (DNS rebinding); the header then has that name.
            if not is_loopback(_name(host or "")):
                raise Refused("this server is for its own machine: ask for it as localhost or 127.0.0.1.", 403)
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Refused("a key is needed: send it as `Authorization: Bearer KEY`.", 401)
        given = sha256(key.strip().encode("utf-8", "replace")).digest()
        if not any(hmac.compare_digest(given, known) for known in self._hashes):
            raise Refused("the key is wrong.", 401)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and no other can reach it."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The host of a header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
