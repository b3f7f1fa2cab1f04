"""The figures of a page: as files beside it, and as pictures within it."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from stratoscope.report.image import encode_figure, svg_uri
from stratoscope.store.durable import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 120


class Picture(NamedTuple):
    """One figure on a page; `links` are paths of its files by extension, escaped for a link."""

    uri: str
    alt: str
    caption: str
    links: dict[str, str]


class Gallery:
    """Writes figures under ``figures/`` of a folder, each as SVG and PNG under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "figures"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stems: set[str] = set()

    def add(self, figure: Figure, *names: str, alt: str, caption: str) -> Picture:
        """Write a figure; `names` say what it shows, and may hold any character."""
        stem = self._stem("-".join(names))
        contents = {extension: encode_figure(figure, extension) for extension in ("svg", "png")}
        for extension, content in contents.items():
            replace_file(self._folder / f"{stem}.{extension}", partial(_write, content))
        links = {extension: "figures/" + quote(f"{stem}.{extension}") for extension in contents}
        return Picture(svg_uri(contents["svg"]), alt, caption, links)

    def _stem(self, name: str) -> str:
        """Return a file name; what no file system must see is quoted, and a long or taken name gets a digest."""
        stem = quote(name, safe=" ").replace("%", "_").lower()
        if len(stem) > _LONGEST or stem in self._stems:
            stem = f"{stem[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._stems.add(stem)
        return stem


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
