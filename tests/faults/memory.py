"""The memory of a process over time, and whether it grows."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

WINDOW_S: Final = 10.0
"""Samples are averaged over windows of this length: neighbouring samples are not independent of each other."""

T_95: Final = 2.05
"""Student's t for 95 % and about 28 degrees of freedom; a few windows more or less change it little."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth in MiB per minute, by least squares, with its 95 % interval."""

    n_windows: int
    mib_per_minute: float
    low: float
    high: float
    mean_mib: float

    def __str__(self) -> str:
        return (
            f"{self.mib_per_minute:+.3f} MiB/min (95 %: {self.low:+.3f} to {self.high:+.3f}), "
            f"mean {self.mean_mib:.1f} MiB, {self.n_windows} windows of {WINDOW_S:.0f} s"
        )


@dataclass(slots=True)
class Memory:
    """Samples of one process."""

    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    def sample(self) -> None:
        """Take one sample, if the process is still there."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return
        lines = [line.split() for line in status.splitlines() if line.startswith("VmRSS:")]
        if lines:
            self.samples.append((time.monotonic(), int(lines[0][1]) / 1024))

    def slope(self, warm_up_s: float) -> Slope:
        """Fit a line to what came after the warm-up."""
        times, sizes = np.array(self.samples).T
        times = times - times[0]
        numbers = ((times - warm_up_s) // WINDOW_S)[times >= warm_up_s]
        sizes, times = sizes[times >= warm_up_s], times[times >= warm_up_s]
        windows = np.unique(numbers)
        minutes = np.array([times[numbers == window].mean() for window in windows]) / 60
        means = np.array([sizes[numbers == window].mean() for window in windows])
        spread = minutes - minutes.mean()
        slope = float(spread @ means / (spread @ spread))
        rest = means - means.mean() - slope * spread
        error = float(np.sqrt(rest @ rest / (len(windows) - 2) / (spread @ spread)))
        return Slope(len(windows), slope, slope - T_95 * error, slope + T_95 * error, float(means.mean()))
