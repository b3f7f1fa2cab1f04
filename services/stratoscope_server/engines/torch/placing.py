"""Which module goes to which device when one does not hold the model: consecutive blocks, of about equal bytes."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.torch.architectures import Family


def place(config: PretrainedConfig, family: Family, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Plan where the modules of a model go.

    Parameters
    ----------
    config
        Of what ``AutoModel`` loads.
    devices
        In the order in which a prompt passes through them.

    Returns
    -------
    dict
        Device by module name, every parameter and buffer under exactly one name. A block is never divided.

    Raises
    ------
    ModelRefusedError
        If there are more devices than blocks.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    language = f"{family.language_model}." if family.language_model else ""
    blocks, final_norm = f"{language}{family.blocks}", f"{language}{family.final_norm}"
    names = [f"{blocks}.{index}" for index in range(len(model.get_submodule(blocks)))]
    if len(devices) > len(names):
        raise ModelRefusedError(f"{len(devices)} devices are named for {len(names)} layers; name at most {len(names)}")
    plan = dict.fromkeys(_outside(model, blocks), devices[0])
    sizes = [_n_bytes(model.get_submodule(name)) for name in names]
    first = _n_bytes(model) - sum(sizes)
    share = _n_bytes(model) / len(devices)
    before = first
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        # The middle of a block decides; yet every device gets one, from either end.
        chosen = min(int((before + size / 2) / share), len(devices) - 1)
        chosen = min(max(chosen, len(devices) - len(names) + index), index)
        plan[name] = devices[chosen]
        before += size
    plan[final_norm] = devices[-1]
    return plan


def _outside(model: nn.Module, blocks: str) -> list[str]:
    """Name the largest modules that hold no block, and what lies directly beside them."""
    found = []
    for name, module in model.named_modules():
        parent, _, _ = name.rpartition(".")
        is_above = name == "" or blocks == name or blocks.startswith(f"{name}.")
        parent_is_above = parent == "" or blocks.startswith(f"{parent}.")
        if is_above:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found += [f"{name}.{key}".lstrip(".") for key, _ in own]
        elif parent_is_above:
            found.append(name)
    return found


def _n_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
