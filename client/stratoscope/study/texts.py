"""How the texts of an experiment are made: one model for each design."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stratoscope.study.parts import Name, Part, Positive, Scalar


class Rows(Part):
    """Texts as a table has them, in its column ``text``."""

    design: Literal["rows"]
    table: str


class Filled(Part):
    """One text per row of a table, by a template such as ``"{article} {object}"``.

    ``join`` names a table whose columns are added by the one column that both have.
    """

    design: Literal["filled"]
    table: str
    template: str
    join: str | None = None


class Repaired(Part):
    """Related pairs and the same items re-paired, in closed blocks; see `designs.pairs.repaired`."""

    design: Literal["repaired"]
    table: str
    template: str
    seed: int = 0


class Analogies(Part):
    """Two pairs of one relation, or of two, in closed blocks; see `designs.pairs.analogies`."""

    design: Literal["analogies"]
    table: str
    template: str
    seed: int = 0


class Documents(Part):
    """Several sentences of one scene, or of several, in closed blocks; see `designs.documents.documents`."""

    design: Literal["documents"]
    table: str
    seed: int = 0


class Lists(Part):
    """Lists of items, each item once at every place, in closed blocks; see `designs.lists.lists`."""

    design: Literal["lists"]
    table: str
    label: str
    length: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    template: str = "{items}"
    seed: int = 0


class AtDistance(Part):
    """Texts of another experiment, each followed by neutral text; see `designs.context.at_distance`."""

    design: Literal["at_distance"]
    of: Name
    filler: str
    distances: tuple[Annotated[int, Field(ge=0)], ...]
    where: dict[str, Scalar] = Field(default_factory=dict)
    n_groups: Positive | None = None
    seed: int = 0


Texts = Annotated[Rows | Filled | Repaired | Analogies | Documents | Lists | AtDistance, Field(discriminator="design")]
