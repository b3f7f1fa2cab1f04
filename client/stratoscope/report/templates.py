"""Templates of the pages, which escape everything they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stratoscope.report.figure import METRIC_NAMES
from stratoscope.report.prose import ORIGIN, flatten, interval, methods, number, onset

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(packages: Sequence[str] = ()) -> Environment:
    """Return an environment that finds templates in `packages` first and then among those of the report.

    A name that a template uses and nobody gave is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (*packages, "stratoscope.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, interval=interval, methods=methods, onset=onset)
    made.globals.update(metric_names=METRIC_NAMES, origin=ORIGIN, flatten=lambda value: list(flatten(value)))
    return made
