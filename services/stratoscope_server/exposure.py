"""Files that hold a secret: warned about where others than their owner can read or change them."""

import logging
import stat
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

EXPOSED: Final = stat.S_IRWXO | stat.S_IWGRP
"""What nobody but the owner needs. The group may read: that is how a container gets its secrets."""


def warn_if_exposed(path: Path) -> None:
    """Log a warning if others can read a secret file, or its group can change it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & EXPOSED:
        logger.warning(
            "%s has mode %03o, so that others can read or change a secret: chmod 600 %s, or 640 for a group that must "
            "read it",
            path,
            mode,
            path,
        )
