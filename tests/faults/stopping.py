"""A server that is told to stop: what runs ends well or says why not, and newcomers are told to come back."""

import signal
import threading
import time
from typing import Final

import httpx2

from tests.faults.answers import Ending, ask, request_of
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

PACED: Final = ("--illness", "paced", "--max-batch-tokens", "1")
"""One text each 50 ms."""
SLACK_S: Final = 8.0


def stop_signals_mid_stream(world: World) -> Tally:
    verdicts = Verdicts()
    for number in range(world.pick(1, 20)):
        _stop(world, 60, world.random.choice((signal.SIGTERM, signal.SIGINT)), verdicts, in_time=True)
        _stop(world, 1 + number % 3, signal.SIGTERM, verdicts, in_time=False)
    return verdicts.tally


def _stop(world: World, drain_s: int, number: signal.Signals, verdicts: Verdicts, *, in_time: bool) -> None:
    n_texts = 40 if in_time else 250
    server = ServerProcess(world, *PACED, "--drain-seconds", str(drain_s), program="tests.faults.ill")
    with server:
        streams = [_Stream(server.url, n_texts) for _ in range(2)]
        for stream in streams:
            assert stream.began.wait(20), "a stream did not begin"
        server.process.send_signal(number)
        told = time.monotonic()
        _judge_newcomer(server, verdicts)
        for stream in streams:
            ending = stream.result()
            if in_time:
                verdicts.judge(ending.whole and ending.n_kept == n_texts, f"a stream that had its time: {ending}")
            else:
                ends = ending.code == "draining" and ending.retryable and ending.reads_as_broken
                verdicts.judge(ends and 0 < ending.n_kept < n_texts, f"a stream without time: {ending}")
        server.process.wait(60)
        verdicts.judge(time.monotonic() - told < drain_s + SLACK_S, f"it took {time.monotonic() - told:.1f} s to stop")


def _judge_newcomer(server: ServerProcess, verdicts: Verdicts) -> None:
    deadline = time.monotonic() + 5
    while httpx2.get(f"{server.url}/readyz", timeout=5).status_code != 503:
        assert time.monotonic() < deadline, "a server that stops says that it is ready"
    answer = httpx2.post(f"{server.url}/v1/activations", json=request_of(1), timeout=10)
    told = answer.status_code == 503 and answer.json()["error"]["code"] == "draining"
    later = int(answer.headers.get("Retry-After", 0)) >= 1
    verdicts.judge(told and later, f"a newcomer: {answer.status_code} {answer.text}")
    verdicts.judge(httpx2.get(f"{server.url}/healthz", timeout=5).status_code == 200, "the process is alive")


class _Stream:
    """An answer that is read on a thread of its own."""

    def __init__(self, url: str, n_texts: int) -> None:
        self.began = threading.Event()
        self._ending = Ending()
        self._thread = threading.Thread(target=self._read, args=(url, n_texts), daemon=True)
        self._thread.start()

    def result(self) -> Ending:
        self._thread.join(90)
        assert not self._thread.is_alive(), "a stream did not end"
        return self._ending

    def _read(self, url: str, n_texts: int) -> None:
        self._ending = ask(url, request_of(n_texts, layers=[3]), on_first=self.began.set, timeout_s=90)


FAULTS: Final = (
    Fault("F10", "a stop signal in the middle of streams", stop_signals_mid_stream, small_s=90, full_s=900),
)
