"""The digest of a request's body, so that a bit that is lost on the way to the server cannot ask another question.

It travels in the header ``Content-Digest`` as RFC 9530 has it: ``sha-256=:`` and the digest in base64, then ``:``.
"""

import base64
import hashlib
import re
from typing import Final

DIGEST_HEADER: Final = "Content-Digest"

_SHA_256: Final = re.compile(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/=]*):")


def content_digest(body: bytes) -> str:
    """Return the header's value for a body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode('ascii')}:"


def is_contradicted(value: str, body: bytes) -> bool:
    """Tell whether a body is not the one that a header's value describes.

    A value without a SHA-256, which RFC 9530 allows, describes nothing here.
    """
    found = _SHA_256.search(value)
    return found is not None and f"sha-256=:{found[1]}:" != content_digest(body)
