"""Processor time of the processes that take part: unlike tokens/s, it hardly depends on what else the machine does."""

from typing import Final

import psutil

PARTS: Final = ("worker", "server", "client")


class ProcessorTime:
    """Counts the processor seconds of vLLM's workers, of a server, and of the client, which is this process.

    vLLM's core process is left out: it spins while it waits.

    Parameters
    ----------
    server
        Process id of a server of this benchmark.
    """

    def __init__(self, server: int) -> None:
        self._server = psutil.Process(server)
        self._client = psutil.Process()
        self._workers = [child for child in self._server.children(recursive=True) if "Worker" in child.name()]
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        """Return the seconds of each part since this object was made."""
        return {part: now - before for part, now, before in zip(PARTS, self._now(), self._before, strict=True)}

    def _now(self) -> tuple[float, float, float]:
        return sum(map(_seconds, self._workers)), _seconds(self._server), _seconds(self._client)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
