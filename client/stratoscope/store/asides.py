"""Putting a file aside: out of the way, under a name of its own, never deleted."""

import os
from pathlib import Path

from stratoscope.store.disk import disk_faults
from stratoscope.store.durable import sync_folder


def put_aside(path: Path, folder: Path) -> Path:
    """Move a file into a folder, durably; a file of the same name that lies there already stays.

    Returns
    -------
    Path
        Where it is now.
    """
    with disk_faults(path):
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        number = 1
        while os.path.lexists(target):
            number += 1
            target = folder / f"{path.stem}-{number}{path.suffix}"
        os.replace(path, target)  # noqa: PTH105
        sync_folder(folder)
        sync_folder(path.parent)
    return target
