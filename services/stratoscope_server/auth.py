"""API keys: read from a file, kept as digests, compared in constant time."""

import hashlib
import hmac
from pathlib import Path

from fastapi import Request

from stratoscope_server.problems import ApiError

MIN_KEY_CHARACTERS = 16


class KeyRing:
    """The keys a server accepts; without any, every request is let in.

    Parameters
    ----------
    path
        A file of keys, one per line; blank lines and lines that start with ``#`` are left out.

    Raises
    ------
    ValueError
        If the file cannot be read, holds no key, or one that is too short.
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
            request.state.key = "anonymous"
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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the API key file {path}: {error}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the API key file {path} holds no key")
    if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise ValueError(f"the API key file {path} holds a key of fewer than {MIN_KEY_CHARACTERS} characters")
    return [_digest(key) for key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
