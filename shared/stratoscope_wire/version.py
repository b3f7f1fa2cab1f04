"""Versions of the distribution and of the protocol it speaks."""

__version__ = "0.1.0"

PROTOCOL_VERSION = "1"
"""Version of the request, schema and frame layout; a peer with another one is refused, never guessed at."""

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
"""Media type of an answer to ``POST /v1/activations``."""
