"""Where a model comes from: the embedded one, a local folder, or the Hugging Face hub."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_download, snapshot_download

from stratoscope_server.engines.pretrained.checkpoint import check_config, check_folder
from stratoscope_server.engines.pretrained.contents import check_sums, hash_files, hash_of
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.smollm2 import provide_smollm2

logger = logging.getLogger(__name__)

EMBEDDED_MODEL: Final = "smollm2-135m"
"""SmolLM2-135M-Instruct, which needs no network."""

_WANTED: Final = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
# Some repositories hold the same weights a second time under these names.
_UNWANTED: Final = ["*/*", "consolidated*"]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on the local disk.

    Attributes
    ----------
    name
        What the model card calls it.
    folder
        Config, safetensors and tokenizer.
    revision
        Commit on the hub, or the same as `contents`.
    contents
        ``sha256:`` and the hash over config, weights and tokenizer, as they are on the disk.
    """

    name: str
    folder: Path
    revision: str
    contents: str


def resolve_source(
    model: str,
    revision: str | None,
    cache_dir: Path,
    *,
    supported: Collection[str],
    sums: Path | None = None,
) -> Source:
    """Bring a model to the local disk.

    Parameters
    ----------
    model
        ``smollm2-135m``, a local folder, or a model id on the Hugging Face hub.
    revision
        Branch, tag or commit on the hub; only for a model of the hub.
    cache_dir
        Where the converted embedded model is kept. The hub keeps its own cache.
    supported
        Values of ``model_type`` that the engine knows.
    sums
        A list such as ``sha256sum`` writes, which every file must be in.

    Raises
    ------
    ModelRefusedError
        If there is no such model, or it cannot be served correctly.
    """
    name, folder, commit = _locate(model, revision, cache_dir, supported)
    check_folder(folder, supported)
    files = hash_files(folder)
    if sums is not None:
        check_sums(files, sums)
    contents = hash_of(files)
    return Source(name, folder, commit or contents, contents)


def _locate(
    model: str, revision: str | None, cache_dir: Path, supported: Collection[str]
) -> tuple[str, Path, str | None]:
    if model != EMBEDDED_MODEL and not Path(model).is_dir():
        return _from_hub(model, revision, supported)
    if revision is not None:
        raise ModelRefusedError(f"revision {revision!r} was given, but {model!r} is not a model of the hub; omit it")
    folder = provide_smollm2(cache_dir) if model == EMBEDDED_MODEL else Path(model).resolve()
    # The folder's path is this machine's affair: the same weights elsewhere are the same model.
    return model if model == EMBEDDED_MODEL else folder.name, folder, None


def _from_hub(model: str, revision: str | None, supported: Collection[str]) -> tuple[str, Path, str]:
    if model.startswith((".", "/", "~")):
        raise ModelRefusedError(f"folder {model!r} does not exist")
    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
        check_config(config, supported)
        # A branch may move while its files are fetched; the commit of its config cannot.
        commit = config.parent.name
        folder = Path(snapshot_download(model, revision=commit, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    # What huggingface_hub raises for a missing, private or unreachable repository derives from OSError, and for a
    # malformed id from ValueError.
    except (OSError, ValueError) as error:
        raise ModelRefusedError(
            f"model {model!r} is neither a local folder nor available from the Hugging Face hub: {error}"
        ) from error
    if revision != commit:
        logger.warning(
            "%s is served at commit %s, where %s points now; give --revision %s to serve the same weights next time",
            model,
            commit,
            f"revision {revision!r}" if revision else "its default branch",
            commit,
        )
    return model, folder, commit
