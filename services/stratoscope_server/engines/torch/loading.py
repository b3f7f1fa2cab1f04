"""Loading a checkpoint's language model, whole and in the type asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from stratoscope_server.engines.pretrained.checkpoint import check_config
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.quiet import quiet_transformers
from stratoscope_server.engines.pretrained.source import Source
from stratoscope_server.engines.torch.architectures import FAMILIES, Family
from stratoscope_server.engines.torch.attention import attention_of
from stratoscope_server.engines.torch.placing import place

ComputeDtype = Literal["float32", "bfloat16", "auto"]
"""Type in which a model computes; ``auto`` is the checkpoint's own."""

_COMPUTED: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# The unembedding: not needed here, and not loaded.
_SPARE_WEIGHTS: Final = ("lm_head.",)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A language model ready to run: without its unembedding, in evaluation mode.

    Attributes
    ----------
    module
        The language model.
    family
        Where its sites are.
    dtype
        Type in which it computes.
    """

    module: nn.Module
    family: Family
    dtype: str

    @property
    def config(self) -> Any:  # noqa: ANN401 - transformers publishes no common type of its configs
        """The language model's config."""
        return self.module.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, and so where token ids must be."""
        weight = self.module.get_input_embeddings().weight  # type: ignore[operator]
        assert isinstance(weight, torch.Tensor)
        return weight.device


def load_model(source: Source, *, dtype: str, device: str, random_weights: int | None = None) -> LoadedModel:
    """Load the language model of a checkpoint.

    Parameters
    ----------
    source
        The checkpoint.
    dtype
        ``float32``, ``bfloat16``, or ``auto`` for the checkpoint's.
    device
        ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto`` for a GPU where there is one; several with commas between
        them, such as ``cuda:0,cuda:1``, share the layers.
    random_weights
        Seed of weights drawn as before any training, instead of the checkpoint's.

    Raises
    ------
    ModelRefusedError
        If the checkpoint does not fit its architecture weight for weight, or a setting is not available.
    """
    if dtype not in get_args(ComputeDtype):
        raise ModelRefusedError(f"dtype {dtype!r} is not one of {', '.join(get_args(ComputeDtype))}")
    targets = find_devices(device)
    family = FAMILIES[check_config(source.folder / "config.json", FAMILIES)["model_type"]]
    if random_weights is not None:
        return _untrained(source, family, dtype=dtype, devices=targets, seed=random_weights)
    with quiet_transformers():
        model, info = AutoModel.from_pretrained(
            source.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attention_of(family),
            device_map=_device_map(source, family, targets),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _check_weights(source, info)
    module = model.get_submodule(family.language_model).eval()
    return LoadedModel(module, family, _computed_dtype(source, module))


def _device_map(source: Source, family: Family, devices: Sequence[torch.device]) -> dict[str, torch.device] | None:
    if len(devices) == 1:
        return None if devices[0].type == "cpu" else {"": devices[0]}
    return place(_read_config(source), family, devices)


def _read_config(source: Source) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    assert isinstance(config, PretrainedConfig)
    return config


def _untrained(
    source: Source, family: Family, *, dtype: str, devices: Sequence[torch.device], seed: int
) -> LoadedModel:
    """Draw weights as the architecture's training would have begun with; the checkpoint's are not read."""
    config = _read_config(source)
    chosen = config.get_text_config().dtype if dtype == "auto" else getattr(torch, dtype)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        # Drawn in float32 on the CPU, so that the type and the device do not change what is drawn.
        model = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, attn_implementation=attention_of(family)
        )
    model = model.eval().to(dtype=chosen)
    model = model.to(devices[0]) if len(devices) == 1 else dispatch_model(model, place(config, family, devices))
    module = model.get_submodule(family.language_model)
    return LoadedModel(module, family, _computed_dtype(source, module))


def find_devices(devices: str) -> tuple[torch.device, ...]:
    """Return the devices a setting means, in the order in which a prompt passes through them.

    Raises
    ------
    ModelRefusedError
        If there is no such device, or several that are not different GPUs.
    """
    found = tuple(find_device(name.strip()) for name in devices.split(","))
    if len(found) > 1:
        places = {(device.type, device.index) for device in found}
        if len(places) < len(found) or any(kind != "cuda" or index is None for kind, index in places):
            raise ModelRefusedError(f"device {devices!r}: name one device, or different GPUs such as cuda:0,cuda:1")
    return found


def find_device(device: str) -> torch.device:
    """Return the device a setting means.

    Raises
    ------
    ModelRefusedError
        If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelRefusedError(f"device {device!r} is not one of cpu, cuda, cuda:N, auto: {error}") from None
    if found.type not in ("cpu", "cuda"):
        raise ModelRefusedError(f"device {device!r} is not one of cpu, cuda, cuda:N, auto")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelRefusedError(
            f"device {device!r} does not exist: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            "use device cpu or auto"
        )
    return found


def _check_weights(source: Source, info: dict[str, Any]) -> None:
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(key for key in info["unexpected_keys"] if not key.startswith(_SPARE_WEIGHTS)),
        "mismatched": sorted(str(key) for key in info["mismatched_keys"]),
        "unreadable": sorted(info["error_msgs"]),
    }
    told = [f"{len(keys)} {kind} ({', '.join(keys[:3])} ...)" for kind, keys in faults.items() if keys]
    if told:
        raise ModelRefusedError(f"the weights of {source.name!r} do not fit its config: {'; '.join(told)}")


def _computed_dtype(source: Source, module: nn.Module) -> str:
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) != 1 or not dtypes <= _COMPUTED.keys():
        held = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ModelRefusedError(f"the weights of {source.name!r} are {held}; ask for dtype float32 or bfloat16")
    return _COMPUTED[dtypes.pop()]
