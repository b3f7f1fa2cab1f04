"""How much memory this process may use."""

import os
from pathlib import Path
from typing import Final

CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux tells a container's limit: version 2 of its control groups, then version 1."""


def usable_memory(limits: tuple[Path, ...] = CGROUP_LIMITS) -> int:
    """Return the bytes of memory of the machine, or of the container if it is allowed less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = [path.read_text(encoding="ascii").strip() for path in limits if path.is_file()]
    return min([machine, *(int(text) for text in told if text.isdigit())])
