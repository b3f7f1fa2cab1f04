"""Exit 0 if the server in this container is ready, 1 with the reason otherwise. Run by Docker's health check."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 4
"""Less than Docker gives the check, so that the reason is told rather than the check killed."""


def first_key(path: Path) -> str:
    """Return the first key of a file that the server accepts: one per line, ``#`` starts a comment."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next(line for line in lines if line and not line.startswith("#"))


def ask(port: str, key: str) -> str | None:
    """Return why the server is not ready, or None if it is."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/readyz", headers={"Authorization": f"Bearer {key}"})
    # A proxy of the environment is for the outside, not for this container's own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read().decode(errors='replace')}"
    except OSError as error:
        return str(error)


def main() -> int:
    """Ask once."""
    key = first_key(Path(os.environ["STRATOSCOPE_API_KEY_FILE"]))
    reason = ask(os.environ["STRATOSCOPE_PORT"], key)
    if reason is not None:
        sys.stderr.write(f"not ready: {reason}\n")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
