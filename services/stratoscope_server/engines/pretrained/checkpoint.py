"""What a checkpoint says of itself, and what is refused for it before anything is loaded."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stratoscope_server.engines.pretrained.contents import refuse_foreign_files
from stratoscope_server.engines.pretrained.errors import ModelRefusedError


def check_config(path: Path, supported: Collection[str]) -> dict[str, Any]:
    """Read a model's ``config.json`` and refuse what cannot be served correctly.

    Parameters
    ----------
    path
        Of the file.
    supported
        Values of ``model_type`` that the engine knows.

    Raises
    ------
    ModelRefusedError
        If the file is missing or unreadable, the model brings code of its own, is quantised, attends in both
        directions, or belongs to no supported family.
    """
    config = _read_json(path)
    _refuse_code(config, path)
    if config.get("model_type") not in supported:
        raise ModelRefusedError(
            f"model_type {config.get('model_type')!r} is not supported; supported are {', '.join(supported)}"
        )
    text = {**config, **config.get("text_config", {})}
    if "quantization_config" in text:
        raise ModelRefusedError(f"{path} describes a quantised checkpoint; serve the unquantised one")
    if text.get("use_bidirectional_attention"):
        raise ModelRefusedError(f"{path} describes a model that attends to later tokens; only causal ones are served")
    return config


def check_folder(folder: Path, supported: Collection[str]) -> None:
    """Refuse a folder that does not hold exactly one complete model in safetensors.

    Raises
    ------
    ModelRefusedError
        If `check_config` refuses it, it has no safetensors or holds an adapter, or a file in it brings code or leads
        out of it.
    """
    check_config(folder / "config.json", supported)
    refuse_foreign_files(folder)
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(kind))
        held = f" (it has {', '.join(others)})" if others else ""
        raise ModelRefusedError(
            f"{folder} has no .safetensors file{held}; only safetensors are loaded: convert the model with "
            "save_pretrained"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelRefusedError(f"{folder} holds an adapter; merge it into the model and save that")
    for path in sorted(folder.glob("*config.json")):
        _refuse_code(_read_json(path), path)


def _refuse_code(config: dict[str, Any], path: Path) -> None:
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    if any("auto_map" in part for part in parts):
        raise ModelRefusedError(f"{path} asks for code from the checkpoint (auto_map); such code is never run")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelRefusedError(f"{path.parent} has no {path.name}: it is no Hugging Face model") from None
    except ValueError as error:
        raise ModelRefusedError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelRefusedError(f"{path} is not a JSON object")
    return content
