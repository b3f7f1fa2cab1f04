"""Exit 0 if the server in this container is ready, 1 with the reason otherwise. Run by Docker's health check."""

import os
import ssl
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


def ask(scheme: str, port: str, key: str) -> str | None:
    """Return why the server is not ready, or None if it is."""
    address = f"{scheme}://127.0.0.1:{port}/readyz"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http(s) only
    # The certificate is for the server's name outside, and nobody stands between a container and its own loopback.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # A proxy of the environment is for the outside as well.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
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
    scheme = "https" if os.environ.get("STRATOSCOPE_TLS_CERTIFICATE") else "http"
    reason = ask(scheme, os.environ["STRATOSCOPE_PORT"], key)
    if reason is not None:
        sys.stderr.write(f"not ready: {reason}\n")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
