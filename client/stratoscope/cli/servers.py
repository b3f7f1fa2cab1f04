"""The servers that a command was given."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from stratoscope.client import Client
from stratoscope.link import CompressionSetting

Servers = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Address of a server; several of the same model share the work [STRATOSCOPE_BASE_URL, or 127.0.0.1:8000].",
    ),
]


Compression = Annotated[
    CompressionSetting,
    typer.Option(help="Compress answers on the way; auto: where the link is slow, never on this machine."),
]


@contextmanager
def connected(servers: Sequence[str] | None, compression: CompressionSetting = "auto") -> Iterator[tuple[Client, ...]]:
    """Give a client for each server, or for the default one."""
    with ExitStack() as stack:
        chosen: Sequence[str | None] = servers or [None]
        yield tuple(stack.enter_context(Client(server, compression=compression)) for server in chosen)
