"""Reads as much of a Dockerfile as its tests need."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, and the rest as one line."""

    word: str
    rest: str

    @property
    def arguments(self) -> list[str] | None:
        """The arguments of an instruction in exec form; None in shell form."""
        return list(json.loads(self.rest)) if self.rest.startswith("[") else None

    @property
    def pairs(self) -> dict[str, str]:
        """The variables of an ENV or ARG."""
        return dict(word.partition("=")[::2] for word in shlex.split(self.rest))


def read(name: str) -> list[Instruction]:
    """Read every instruction of a Dockerfile at the root, comments left out and continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """Split the instructions at each FROM; what comes before the first one is left out."""
    starts = [index for index, instruction in enumerate(instructions) if instruction.word == "FROM"]
    return [instructions[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
