"""Planted facts: what a synthetic model shall hold of which texts, and at which layers."""

import hashlib
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stratoscope_wire.sites import LAYER_SITES


class Fact(BaseModel):
    """A fact of texts.

    Attributes
    ----------
    name
        Two facts of one name would be written along the same direction.
    values
        Value by text. It stands at the text's last token alone, and is added along the fact's direction.
    gains
        By site, the factor at each layer. The noise it must be told from has variance 1/3 in every dimension.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    values: dict[str, float]
    gains: dict[str, list[float]]


class Plants(BaseModel):
    """Everything that is planted in a synthetic model.

    Attributes
    ----------
    n_layers
        Layers of the model.
    facts
        What it holds.
    revision
        For its card: two models with other plants are other models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: Annotated[int, Field(ge=1, le=200)] = 12
    facts: list[Fact] = []
    revision: str = "1"

    @model_validator(mode="after")
    def _gains_fit(self) -> Self:
        for fact in self.facts:
            for site, gains in fact.gains.items():
                if site not in LAYER_SITES:
                    raise ValueError(f"fact {fact.name!r}: {site!r} is no site with layers: {', '.join(LAYER_SITES)}")
                if len(gains) != self.n_layers:
                    raise ValueError(f"fact {fact.name!r}, {site}: {len(gains)} gains for {self.n_layers} layers")
        names = [fact.name for fact in self.facts]
        if len(set(names)) < len(names):
            raise ValueError("two facts have one name")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file.

        Raises
        ------
        ValueError
            If it is not there, or holds something else.
        """
        try:
            content = path.read_bytes()
            plants = cls.model_validate_json(content)
        except OSError as error:
            raise ValueError(f"plants {path}: {error}") from None
        except ValidationError as error:
            raise ValueError(
                f"plants {path}: {error.errors(include_url=False, include_input=False)[0]['msg']}"
            ) from None
        return plants.model_copy(update={"revision": f"plants-{hashlib.sha256(content).hexdigest()[:16]}"})


def direction(name: str, width: int) -> npt.NDArray[np.float64]:
    """Return the direction of a fact, float64 array of shape (width,), uniform in [-1, 1)."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).uniform(-1, 1, width)
