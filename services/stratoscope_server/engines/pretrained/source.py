"""Where a model comes from: the embedded one, a local folder, or the Hugging Face hub."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_download, snapshot_download

from stratoscope_server.engines.pretrained.checkpoint import check_config, check_folder, hash_folder
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.smollm2 import provide_smollm2

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
        Commit on the hub, or ``sha256:`` and the hash of the folder's contents.
    """

    name: str
    folder: Path
    revision: str


def resolve_source(model: str, revision: str | None, cache_dir: Path, *, supported: Collection[str]) -> Source:
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

    Raises
    ------
    ModelRefusedError
        If there is no such model, or it cannot be served correctly.
    """
    if model != EMBEDDED_MODEL and not Path(model).is_dir():
        return _from_hub(model, revision, supported)
    if revision is not None:
        raise ModelRefusedError(f"revision {revision!r} was given, but {model!r} is not a model of the hub; omit it")
    folder = provide_smollm2(cache_dir) if model == EMBEDDED_MODEL else Path(model).resolve()
    check_folder(folder, supported)
    # The folder's path is this machine's affair: the same weights elsewhere are the same model.
    name = model if model == EMBEDDED_MODEL else folder.name
    return Source(name, folder, hash_folder(folder))


def _from_hub(model: str, revision: str | None, supported: Collection[str]) -> Source:
    if model.startswith((".", "/", "~")):
        raise ModelRefusedError(f"folder {model!r} does not exist")
    try:
        check_config(Path(hf_hub_download(model, "config.json", revision=revision)), supported)
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    # What huggingface_hub raises for a missing, private or unreachable repository derives from OSError, and for a
    # malformed id from ValueError.
    except (OSError, ValueError) as error:
        raise ModelRefusedError(
            f"model {model!r} is neither a local folder nor available from the Hugging Face hub: {error}"
        ) from error
    check_folder(folder, supported)
    return Source(model, folder, revision=folder.name)
