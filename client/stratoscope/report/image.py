"""A figure as bytes: the same figure gives the same bytes."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from stratoscope.report.figure import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 220


def encode_figure(figure: Figure, extension: str) -> bytes:
    """Return `figure` as a file of type `extension`, such as "svg" or "png"."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(STYLE):
        metadata = {"Date": None} if extension == "svg" else None
        figure.savefig(buffer, format=extension, dpi=DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def svg_uri(svg: bytes) -> str:
    """Return a drawing as a data URI, which a page shows without loading anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
