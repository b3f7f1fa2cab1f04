"""Taps: the hooks that read a site as the model computes it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.torch.architectures import Family
from stratoscope_wire.sites import column_name

Sink = Callable[[str, torch.Tensor], None]
"""Takes a column's name and its states of shape (n_prompts, n_tokens, width); may not keep the tensor."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A module, and the side of it at which a site is read."""

    module: nn.Module
    side: Literal["input", "output"]

    def attach(self, column: str, sink: Sink) -> RemovableHandle:
        """Call the sink with the states whenever the module runs, until the handle is removed."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sink(column, args[0] if args else kwargs["hidden_states"])

        def after(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor | tuple[Any, ...]) -> None:
            sink(column, output[0] if isinstance(output, tuple) else output)

        if self.side == "input":
            return self.module.register_forward_pre_hook(before, with_kwargs=True)
        return self.module.register_forward_hook(after)


def locate_taps(model: nn.Module, family: Family, n_layers: int) -> dict[str, Tap]:
    """Find the tap of every column of a model.

    Raises
    ------
    ModelRefusedError
        If the model has not the modules of its family, or not as many blocks as its config says.
    """
    try:
        blocks = list(model.get_submodule(family.blocks).children())
        if len(blocks) != n_layers:
            raise ModelRefusedError(f"the config names {n_layers} layers, the model has {len(blocks)}")
        taps = {"embed": Tap(blocks[0], "input"), "final_norm": Tap(model.get_submodule(family.final_norm), "output")}
        for layer, block in enumerate(blocks):
            taps |= {column_name(site, layer): tap for site, tap in _block_taps(block, family).items()}
    except (AttributeError, IndexError) as error:
        raise ModelRefusedError(
            f"{type(model).__name__} has not the modules expected of its family: {error}"
        ) from error
    return taps


def _block_taps(block: nn.Module, family: Family) -> dict[str, Tap]:
    return {
        "heads": Tap(block.get_submodule(family.heads), "input"),
        "attn_out": Tap(block.get_submodule(family.attn_out), "output"),
        "resid_mid": Tap(block.get_submodule(family.mlp_norm), "input"),
        "mlp_out": Tap(block.get_submodule(family.mlp_out), "output"),
        "resid_post": Tap(block, "output"),
    }


@contextmanager
def attached(taps: Mapping[str, Tap], columns: Iterable[str], sink: Sink) -> Iterator[None]:
    """Attach the taps of some columns for the time of one forward pass."""
    with ExitStack() as handles:
        for column in columns:
            handles.callback(taps[column].attach(column, sink).remove)
        yield
