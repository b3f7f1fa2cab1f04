"""What the figures depend on: hardware, versions, commit, date."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("torch", "transformers", "pyarrow", "numpy", "scikit-learn", "httpx2")


def describe(command: str) -> dict[str, str]:
    """Return the columns that every row of a result has."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "command": command,
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]
        ),
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def commit() -> str:
    """Return the commit, and whether anything differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
