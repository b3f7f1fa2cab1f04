"""Injects one fault, in a process of its own: `tests.faults.one MODULE ID SCALE SEED ENGINE PYTHON FOLDER`."""

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Final, cast

from tests.faults.fault import Engine, Fault, NotHereError, Scale, World

RESULT: Final = "result.json"


def load(module: str) -> tuple[Fault, ...]:
    """Return the faults of a module, its constant FAULTS."""
    return cast("tuple[Fault, ...]", importlib.import_module(module).FAULTS)


def main(module: str, name: str, scale: str, seed: str, engine: str, python: str, folder: str) -> None:
    fault = next(fault for fault in load(module) if fault.id == name)
    place = Path(folder)
    work = place / "work"
    work.mkdir()
    # Each fault has its own sequence, so that one of them alone meets the same chances as in the whole campaign.
    chance = random.Random(f"{seed}/{name}")
    world = World(cast("Scale", scale), chance, work, cast("Engine", engine), python)
    try:
        result: object = fault.inject(world).to_dict()
    except NotHereError as error:
        result = {"not_here": str(error)}
    (place / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
