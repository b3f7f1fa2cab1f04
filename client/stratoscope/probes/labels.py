"""What is to be predicted: labels as given, encoded once, with control and permuted label vectors beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from stratoscope.probes.errors import DesignError

Floats = NDArray[np.float64]

Kind = Literal["classes", "values"]
"""What a label is: one of two or more classes, or a real value."""

Control = Literal["none", "shuffled", "type", "permuted"]
"""What a label vector is: the labels as given, a control, or one draw of the permutation null."""


@dataclass(frozen=True)
class Labels:
    """One target.

    name : of the target
    kind : "classes" or "values"
    classes : names of the classes, in sorted order; empty for values
    Y : float64 array of shape (n_stimuli, n_vectors); class numbers 0, 1, ... or values; column 0 as given
    vectors : what each column of Y is, as (control, number of the draw)
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    Y: Floats
    vectors: tuple[tuple[Control, int], ...] = (("none", 0),)

    @property
    def given(self) -> Floats:
        """The labels as given, float64 of shape (n_stimuli,)."""
        return self.Y[:, 0]

    @property
    def n_outputs(self) -> int:
        """Decisions per stimulus: one for two classes and for values, else one per class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def with_vectors(self, control: Control, drawn: Floats) -> Labels:
        """Add label vectors of shape (n_stimuli, n_drawn) behind those there are."""
        numbered = tuple((control, number) for number in range(drawn.shape[1]))
        return replace(self, Y=np.column_stack([self.Y, drawn]), vectors=self.vectors + numbered)

    def alone(self) -> Labels:
        """Return the labels as given, without controls."""
        return replace(self, Y=self.Y[:, :1], vectors=self.vectors[:1])


def encode(y: Any, *, kind: Kind, target: str | Sequence[str]) -> tuple[Labels, ...]:
    """Encode one or several targets.

    Parameters
    ----------
    y : array-like of shape (n_stimuli,) or (n_stimuli, n_targets), data frame, or mapping of names to labels
        Several columns are several targets: multi-label where they are classes, multi-target where they are values.
    kind : {"classes", "values"}
    target : str or sequence of str
        Names of the targets where `y` has none; one name for several columns is numbered.

    Raises
    ------
    DesignError
        If a label is missing or infinite, there is but one class, or values are asked for and labels are no numbers.
    """
    columns = _columns(y, target)
    if len({len(column) for column in columns.values()}) != 1 or not len(next(iter(columns.values()))):
        raise DesignError("y: give every target one label per stimulus, and at least one stimulus")
    several = len(columns) > 1
    return tuple(_encode(f"y[{name!r}]" if several else "y", name, column, kind) for name, column in columns.items())


def check_no_gaps(name: str, values: NDArray[Any]) -> None:
    """Refuse None and NaN, the only values that are None or differ from themselves."""
    for row, value in enumerate(values.tolist()):
        if value is None or value != value:
            raise DesignError(f"{name}[{row}] is {value}; every stimulus needs one. Drop the stimulus or label it.")


def _columns(y: Any, target: str | Sequence[str]) -> dict[str, NDArray[Any]]:
    if isinstance(y, Mapping):
        named = {str(name): np.asarray(column) for name, column in y.items()}
    elif isinstance(y, pl.DataFrame) or hasattr(y, "columns"):
        named = {str(name): np.asarray(y[name]) for name in y.columns}
    else:
        named = _named(np.asarray(y), target)
    if not named:
        raise DesignError("y holds no target")
    for name, column in named.items():
        if column.ndim != 1:
            raise DesignError(f"y[{name!r}] has shape {column.shape}; expected one label per stimulus")
    return named


def _named(array: NDArray[Any], target: str | Sequence[str]) -> dict[str, NDArray[Any]]:
    if array.ndim == 1 and isinstance(target, str):
        return {target: array}
    if array.ndim != 2:
        raise DesignError(f"y has shape {array.shape}; expected one label per stimulus, or one column per target")
    names = [f"{target}_{i}" for i in range(array.shape[1])] if isinstance(target, str) else list(target)
    if len(set(names)) != array.shape[1] or len(names) != array.shape[1]:
        raise DesignError(f"target={names!r} does not name the {array.shape[1]} columns of y, each once")
    return dict(zip(names, array.T, strict=True))


def _encode(shown: str, name: str, column: NDArray[Any], kind: Kind) -> Labels:
    check_no_gaps(shown, column)
    if kind == "classes":
        classes, codes = np.unique(column, return_inverse=True)
        if len(classes) < 2:
            raise DesignError(
                f"{shown} holds the one class {classes.tolist()[0]!r}; a probe needs two. Add stimuli of another."
            )
        if column.dtype.kind == "f" and len(classes) > max(20, len(column) // 4):
            raise DesignError(
                f"{shown} has {len(classes)} different values over {len(column)} stimuli: these are no classes. "
                'For values use probe="ridge".'
            )
        return Labels(name, kind, tuple(str(label) for label in classes.tolist()), codes.astype(np.float64)[:, None])
    if column.dtype.kind not in "fiub":
        raise DesignError(f'{shown} has dtype {column.dtype}; a regression takes numbers. For classes use "svm".')
    values = column.astype(np.float64)
    if not np.isfinite(values).all():
        raise DesignError(f"{shown}[{int(np.flatnonzero(~np.isfinite(values))[0])}] is infinite")
    return Labels(name, kind, (), values[:, None])


def as_names(groups: ArrayLike, n_stimuli: int, what: str = "groups") -> NDArray[Any]:
    """Return one name per stimulus, as strings.

    Raises
    ------
    DesignError
        If there is not one per stimulus, or one is missing.
    """
    names = np.asarray(groups)
    if names.shape != (n_stimuli,):
        raise DesignError(f"{what} has shape {names.shape} and y ({n_stimuli},); give one per stimulus")
    check_no_gaps(what, names)
    return names.astype(str)
