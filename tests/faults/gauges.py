"""What a server counts, read from its metrics."""

import time
from collections.abc import Callable

import httpx2


def gauge(url: str, name: str) -> float:
    """Return a metric without labels."""
    text = httpx2.get(f"{url}/metrics", timeout=20).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"stratoscope_{name} ")]
    return float(line.split()[1])


def held(url: str) -> tuple[float, float, float]:
    """Return what requests hold: places that run, places that wait, bytes in flight."""
    return gauge(url, "running_requests"), gauge(url, "queued_requests"), gauge(url, "bytes_in_flight")


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float:
    """Wait for a condition; return how long it took, or infinity if it did not come about in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - began
