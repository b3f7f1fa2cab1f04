"""Taps: the hooks that read a site as the model computes it."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

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

    def attach(self, column: str, sink: Sink) -> None:
        """Call the sink with the states whenever the module runs."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sink(column, args[0] if args else kwargs["hidden_states"])

        def after(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor | tuple[Any, ...]) -> None:
            sink(column, output[0] if isinstance(output, tuple) else output)

        if self.side == "input":
            self.module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            self.module.register_forward_hook(after)


class _Reader(threading.local):
    """What the pass of the present thread reads, and who takes it."""

    columns: frozenset[str] = frozenset()
    sink: Sink | None = None


class Taps:
    """The taps of all columns of a model, attached once; each thread reads its own pass through them.

    Parameters
    ----------
    model, family, n_layers
        As of `locate_taps`.

    Raises
    ------
    ModelRefusedError
        As `locate_taps` does.
    """

    def __init__(self, model: nn.Module, family: Family, n_layers: int) -> None:
        self._reader = _Reader()
        for column, tap in locate_taps(model, family, n_layers).items():
            tap.attach(column, self._take)

    @contextmanager
    def reading(self, columns: Iterable[str], sink: Sink) -> Iterator[None]:
        """Give the sink some columns of the pass that runs on this thread meanwhile."""
        self._reader.columns, self._reader.sink = frozenset(columns), sink
        try:
            yield
        finally:
            self._reader.columns, self._reader.sink = frozenset(), None

    def _take(self, column: str, states: torch.Tensor) -> None:
        reader = self._reader
        if reader.sink is not None and column in reader.columns:
            reader.sink(column, states)


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
