"""What everything in a study is made of: strict, frozen models and the kinds of names and values in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from stratoscope.errors import StratoscopeError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
"""Names become names of files: lower-case letters, digits, ``-`` and ``_``."""

Positive = Annotated[int, Field(ge=1)]
Scalar = str | int | float | bool


class StudyError(StratoscopeError, ValueError):
    """A study, or something it names, that cannot be used."""


class Part(BaseModel):
    """Base of everything in a study: unknown keys are refused, nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
