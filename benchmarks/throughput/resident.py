"""How much memory a process has taken, as Linux counts it."""

import re
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds now (Linux)."""
    return _status(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """Return the most memory that a process has held (Linux)."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the peak of a process begin anew (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    if found is None:
        raise RuntimeError(f"process {pid} does not tell its {name}; this is measured on Linux")
    return int(found[1]) << 10
