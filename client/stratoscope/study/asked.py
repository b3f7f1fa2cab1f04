"""What a study asks of all its experiments together: questions beyond single curves, and claims to be decided."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stratoscope.study.parts import Part


class Halves(Part):
    """Targets of a question: ``EXPERIMENT`` for all of its targets that are no controls, or ``EXPERIMENT/TARGET``."""

    of: tuple[str, ...]


class RiseFallRise(Halves):
    """Whether a curve rises, falls and rises again; see `rise_fall`.

    Attributes
    ----------
    windows
        Layers of first peak, trough and second peak, fixed beforehand; else they are found on one half of the groups
        and tested on the other.
    sites
        Sites, each with a test of its own; all that are read and have layers by default.
    """

    windows: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    sites: tuple[str, ...] | None = None


class Coordination(Halves):
    """Whether neighbouring layers take turns; see `coordination`.

    Attributes
    ----------
    sites
        Sites, each with a test of its own; all that are read and have layers by default.
    span
        Layers over which a curve's trend is fitted, and within which the null exchanges layers.
    draws
        Draws of the null.
    """

    sites: tuple[str, ...] | None = None
    span: Annotated[int, Field(ge=5)] = 8
    draws: Annotated[int, Field(ge=100)] = 2000


class Transfer(Halves):
    """Whether a target is written alike in all layers: every layer's probe is tested on every layer."""

    site: str = "resid_post"


class Heads(Halves):
    """Heads that are probed one by one.

    Attributes
    ----------
    depths
        Relative depths of the layers whose heads are probed one by one, 0 to 1.
    """

    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.25, 0.5, 0.75)


class Claim(Part):
    """A claim and the rule that decides it; see `claims`.

    Attributes
    ----------
    claim
        In our words.
    paper
        What the paper's abstract states, and where.
    rule
        Which rule of `claims.RULES` decides.
    experiments
        What it is about, in the order that the claim names.
    site
        Where it is decided.
    distance_from
        Of experiments at a distance, the analyses that count: those of so many tokens or more.
    """

    claim: str
    paper: str
    rule: Literal["order", "fades", "deep", "rise_fall_rise", "coordination"]
    experiments: Annotated[tuple[str, ...], Field(min_length=1)]
    site: str = "resid_post"
    distance_from: Annotated[int, Field(ge=0)] = 0
