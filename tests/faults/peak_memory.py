"""How much memory a process takes at most, as the kernel counts it."""

from pathlib import Path

import psutil


class PeakMemory:
    """The most memory that a process has had since this was made, beyond what it had then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = int(psutil.Process(pid).memory_info().rss)

    @property
    def growth(self) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        (peak,) = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")]
        return peak - self._before
