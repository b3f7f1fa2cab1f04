"""The contents of a checkpoint's folder: what in it is refused by its sight, and the hashes that stand for it."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from stratoscope_server.engines.pretrained.errors import ModelRefusedError

TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files that define a tokenizer."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SUM_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a folder with code in it, with a link that leads out of it, or an index that does.

    In a snapshot of the Hugging Face cache every file is a link into the folder ``blobs`` of its repository; these, and
    no others, are followed.

    Raises
    ------
    ModelRefusedError
        With the name of the file.
    """
    blobs = _blobs_of(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".py", ".pyc", ".so"):
            raise ModelRefusedError(
                f"{folder} holds code ({path.name}); code from a checkpoint is never run: delete the file if the model "
                "does without"
            )
        target = path.resolve()
        if path.is_symlink() and target.parent not in (folder.resolve(), blobs):
            raise ModelRefusedError(
                f"{path} is a link that leads out of the model's folder, to {target}; copy the file into it"
            )
    for index in folder.glob("*.safetensors.index.json"):
        _check_index(index)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of config, weights and tokenizer by file name."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    others = [folder / name for name in ("config.json", *TOKENIZER_FILES)]
    paths = sorted(path for path in [*weights, *others] if path.is_file())
    # Hashing leaves the interpreter's lock alone: a large model's files are read as fast as the disk gives them.
    with ThreadPoolExecutor() as threads:
        return dict(zip((path.name for path in paths), threads.map(_hash, paths), strict=True))


def hash_of(files: dict[str, str]) -> str:
    """Return one hash over the names and hashes of files, as ``sha256:<hex>``."""
    total = hashlib.sha256()
    for name, digest in sorted(files.items()):
        total.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def check_sums(files: dict[str, str], pinned: Path) -> None:
    """Hold files against a list such as ``sha256sum`` writes.

    Raises
    ------
    ModelRefusedError
        If the list cannot be read, or a file is not in it or has another hash.
    """
    try:
        lines = pinned.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelRefusedError(f"cannot read the list of hashes {pinned}: {error}") from None
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        found = _SUM_LINE.fullmatch(line)
        if found is None:
            raise ModelRefusedError(f"line {number} of {pinned} is not 'HASH  FILE', as sha256sum writes it")
        expected[Path(found[2]).name] = found[1]
    for name, digest in files.items():
        if name not in expected:
            raise ModelRefusedError(
                f"{name} of the model is not in the list {pinned}: sha256sum it there, or remove it"
            )
        if expected[name] != digest:
            raise ModelRefusedError(f"{name} of the model has SHA-256 {digest}; {pinned} expects {expected[name]}")


def _blobs_of(folder: Path) -> Path | None:
    real = folder.resolve()
    if real.parent.name == "snapshots" and _COMMIT.fullmatch(real.name):
        return real.parent.parent / "blobs"
    return None


def _check_index(index: Path) -> None:
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelRefusedError(f"{index} is not an index of safetensors files") from None
    for name in sorted(map(str, named)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelRefusedError(f"{index} names {name!r}, which is no safetensors file of its own folder")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
