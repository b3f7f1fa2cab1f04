"""Loading a checkpoint's language model, whole and in the type asked for."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from stratoscope_server.engines.pretrained.checkpoint import check_config
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.quiet import quiet_transformers
from stratoscope_server.engines.pretrained.source import Source
from stratoscope_server.engines.torch.architectures import FAMILIES, Family
from stratoscope_server.engines.torch.attention import attention_of

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
        ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto`` for a GPU where there is one.
    random_weights
        Seed of weights drawn as before any training, instead of the checkpoint's.

    Raises
    ------
    ModelRefusedError
        If the checkpoint does not fit its architecture weight for weight, or a setting is not available.
    """
    if dtype not in get_args(ComputeDtype):
        raise ModelRefusedError(f"dtype {dtype!r} is not one of {', '.join(get_args(ComputeDtype))}")
    target = find_device(device)
    family = FAMILIES[check_config(source.folder / "config.json", FAMILIES)["model_type"]]
    if random_weights is not None:
        return _untrained(source, family, dtype=dtype, device=target, seed=random_weights)
    with quiet_transformers():
        model, info = AutoModel.from_pretrained(
            source.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attention_of(family),
            device_map=None if target.type == "cpu" else {"": target},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _check_weights(source, info)
    module = model.get_submodule(family.language_model).eval()
    return LoadedModel(module, family, _computed_dtype(source, module))


def _untrained(source: Source, family: Family, *, dtype: str, device: torch.device, seed: int) -> LoadedModel:
    """Draw weights as the architecture's training would have begun with; the checkpoint's are not read."""
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    chosen = config.get_text_config().dtype if dtype == "auto" else getattr(torch, dtype)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        # Drawn in float32 on the CPU, so that the type and the device do not change what is drawn.
        model = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, attn_implementation=attention_of(family)
        )
    module = model.get_submodule(family.language_model).eval().to(device=device, dtype=chosen)
    return LoadedModel(module, family, _computed_dtype(source, module))


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
