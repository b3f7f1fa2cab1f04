"""Objects: a run's files in an object store, through Arrow's file systems."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType

from stratoscope.errors import ConfigurationError, StorageError
from stratoscope.store.disk import GO_ON, disk_faults, faults

OPTIONS: Final = frozenset({"endpoint_override", "scheme", "region", "project_id", "retry_limit_seconds"})
"""What an address may say beside the place; credentials come from the environment, where nothing repeats them."""

PIECE_BYTES: Final = 1 << 20


def is_url(path: str | Path) -> bool:
    """Tell whether a run is named by the address of an object store."""
    return isinstance(path, str) and "://" in path


@dataclass(frozen=True, slots=True)
class Size:
    """What is known of an object without reading it."""

    st_size: int


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The objects below one address.

    Attributes
    ----------
    url
        The address without options.
    """

    filesystem: Any
    root: str
    url: str
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str) -> "ObjectStore":
        """Connect to an address such as ``s3://bucket/folder/run``.

        Raises
        ------
        ConfigurationError
            If it cannot be used, or holds credentials.
        StorageError
            If the store is not reached.
        """
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        if parts.password is not None or {name for name, _ in parse_qsl(parts.query)} - OPTIONS:
            raise ConfigurationError(
                f"{shown}: an address may hold the options {', '.join(sorted(OPTIONS))} and no credentials; set these "
                "in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme == "file" or not parts.path.strip("/"):
            raise ConfigurationError(f"{shown}: name a bucket and a folder in it, as in s3://bucket/runs/first")
        with object_faults(shown):
            try:
                filesystem, root = FileSystem.from_uri(url)
            except pa.ArrowInvalid as error:
                raise ConfigurationError(f"{shown} cannot be used as an address: {error}") from None
        return cls(filesystem, root.rstrip("/"), shown)

    def list(self, folder: str) -> dict[str, int]:
        """Return the sizes of the objects in a folder, by name."""
        with object_faults(f"{self.url}/{folder}"):
            found = self.filesystem.get_file_info(FileSelector(f"{self.root}/{folder}", allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == FileType.File}

    def path(self, *parts: str) -> "ObjectPath":
        """Return an object's path."""
        return ObjectPath(self, "/".join(parts))


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """An object, or a folder of objects, with the part of `pathlib.Path` that reading a run needs."""

    store: ObjectStore
    key: str

    def __str__(self) -> str:
        return f"{self.store.url}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.store, f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """Last part of the path."""
        return str(self).rpartition("/")[2]

    def is_file(self) -> bool:
        """Tell whether the object is there."""
        return self._size() is not None

    def stat(self) -> Size:
        """Return the object's size."""
        return Size(self._size() or 0)

    def open(self) -> Any:  # noqa: ANN401
        """Open the object as an Arrow file, which is read by ranges."""
        with object_faults(str(self)):
            return self.store.filesystem.open_input_file(f"{self.store.root}/{self.key}")

    def sha256(self) -> str:
        """Read the object and return its SHA-256."""
        digest = hashlib.sha256()
        with object_faults(str(self)), self.open() as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def read_bytes(self) -> bytes:
        """Read the object."""
        with object_faults(str(self)), self.open() as file:
            return bytes(file.read())

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Give a copy of the object in a temporary folder, under its own key."""
        with TemporaryDirectory(prefix="stratoscope-") as folder:
            copy = Path(folder) / self.key
            copy.parent.mkdir(parents=True, exist_ok=True)
            with object_faults(str(self)), self.open() as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, PIECE_BYTES)
            yield copy

    def upload(self, source: Path, sha256: str) -> None:
        """Put a file's bytes here, and read them back.

        Raises
        ------
        StorageError
            If the store fails, or gives back other bytes.
        """
        if self.is_file() and self.stat().st_size == source.stat().st_size and self.sha256() == sha256:
            return
        with (
            object_faults(str(self)),
            source.open("rb") as file,
            self.store.filesystem.open_output_stream(f"{self.store.root}/{self.key}") as out,
        ):
            while piece := file.read(PIECE_BYTES):
                out.write(piece)
        if self.sha256() != sha256:
            raise StorageError(
                f"{self} does not read back as it was written; {source} is kept. Run the same command again to go on"
            )

    def write_bytes(self, content: bytes) -> None:
        """Put bytes here."""
        name = f"{self.store.root}/{self.key}"
        with object_faults(str(self)), self.store.filesystem.open_output_stream(name) as out:
            out.write(content)

    def unlink(self) -> None:
        """Remove the object."""
        with object_faults(str(self)):
            self.store.filesystem.delete_file(f"{self.store.root}/{self.key}")

    def _size(self) -> int | None:
        # A run that is opened lists its shards once; an object asked for by itself is looked up.
        if self.key in self.store.sizes:
            return self.store.sizes[self.key]
        with object_faults(str(self)):
            info = self.store.filesystem.get_file_info(f"{self.store.root}/{self.key}")
        return int(info.size) if info.type == FileType.File else None


RunPath = Path | ObjectPath
"""Where a run, or a file of it, lies."""


def faults_of(path: RunPath) -> AbstractContextManager[None]:
    """Turn what a disk or an object store reports about a file into an error that names it."""
    return disk_faults(path) if isinstance(path, Path) else object_faults(str(path))


def object_faults(name: str) -> AbstractContextManager[None]:
    """Turn what an object store reports into an error that names the object.

    Raises
    ------
    StorageError
        Instead of any other `OSError`.
    """
    hint = "Check the address and the credentials"
    return faults(lambda error: StorageError(f"{name}: {error}. {hint}. {GO_ON}", errno=error.errno))
