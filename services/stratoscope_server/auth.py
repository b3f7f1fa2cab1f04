"""API keys: read from a file, kept as digests, compared in constant time."""

import hashlib
import hmac
from pathlib import Path
from typing import Final

from fastapi import Request

from stratoscope_server.exposure import warn_if_exposed
from stratoscope_server.problems import ApiError

MIN_KEY_CHARACTERS: Final = 16

ANONYMOUS: Final = "anonymous"
"""Who asks, where the server has no keys."""


class KeyRing:
    """The keys a server accepts; without any, every request is let in.

    Who asked is noted as ``request.state.key``: ``key-1`` for the first key of the file, and so on, or ``anonymous``.

    Parameters
    ----------
    path
        A file of keys, one per line; blank lines and lines that start with ``#`` are left out.

    Raises
    ------
    ValueError
        If the file cannot be read, holds no key, or one that is too short or that no header can carry.
    """

    def __init__(self, path: Path | None) -> None:
        self._digests = [] if path is None else _read_digests(path)

    @property
    def n_keys(self) -> int:
        """Number of keys."""
        return len(self._digests)

    async def __call__(self, request: Request) -> None:
        """Let the request in or raise a 401, and note whose it is; a dependency of the router."""
        if not self._digests:
            request.state.key = ANONYMOUS
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        presented = _digest(token.strip())
        # Every digest is compared, whether or not one has matched, so that the time taken tells nothing.
        known = [hmac.compare_digest(presented, digest) for digest in self._digests]
        if not (any(known) and scheme.lower() == "bearer"):
            raise ApiError(
                401,
                "unauthorized",
                "this server needs an API key it knows: send the header 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request.state.key = f"key-{known.index(True) + 1}"


def _read_digests(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        warn_if_exposed(path)
    except OSError as error:
        raise ValueError(f"cannot read the API key file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        # Its own message would show bytes of a key.
        raise ValueError(f"cannot read the API key file {path}: byte {error.start} is not UTF-8") from None
    keys = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    if not keys:
        raise ValueError(f"the API key file {path} holds no key")
    for number, key in keys.items():
        if len(key) < MIN_KEY_CHARACTERS:
            raise ValueError(
                f"the API key in line {number} of {path} has {len(key)} characters; at least {MIN_KEY_CHARACTERS} are "
                "needed: openssl rand -hex 32"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                f"the API key in line {number} of {path} has a character that no header can carry: use letters and "
                "digits only, one key per line"
            )
    return [_digest(key) for key in keys.values()]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
