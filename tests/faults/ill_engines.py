"""Engines that hang, die, run out of memory or deliver nonsense: told within the deadline, and never taken for data."""

import time
from typing import Final

import httpx2
import psutil

from tests.faults.answers import ask, expected_by, request_of
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

BETWEEN_S: Final = 3
FIRST_S: Final = 4
STALL_S: Final = 5
SLACK_S: Final = 3
READY_S: Final = 10
N_TEXTS: Final = 6
ONE_BY_ONE: Final = ("--max-batch-tokens", "1")
DEADLINES: Final = (
    "--between-batches-seconds", str(BETWEEN_S), "--first-batch-seconds", str(FIRST_S), "--stall-seconds", str(STALL_S),
)  # fmt: skip


def _ill(world: World, illness: str, from_batch: int, *flags: str) -> ServerProcess:
    """A server with one text a batch that falls ill at a batch."""
    return ServerProcess(
        world, "--illness", illness, "--from-batch", str(from_batch), *ONE_BY_ONE, *flags, program="tests.faults.ill"
    )


def engines_that_hang_or_die(world: World) -> Tally:
    verdicts = Verdicts()
    if world.engine == "vllm":
        for victim in ("Worker", "EngineCore"):
            _kill_in_vllm(world, victim, verdicts)
        return verdicts.tally
    for from_batch in (0, 2):
        _hang(world, from_batch, verdicts)
    _be_slow(world, verdicts)
    for from_batch in (0, 2):
        _have_a_bug(world, from_batch, verdicts)
    return verdicts.tally


def _hang(world: World, from_batch: int, verdicts: Verdicts) -> None:
    with _ill(world, "hang", from_batch, *DEADLINES) as server:
        ending = ask(server.url, request_of(N_TEXTS))
        due_s = (BETWEEN_S if from_batch else FIRST_S) + SLACK_S
        codes = ("engine_stalled", "engine_dead", "first_batch_timeout")
        good = ending.code in codes and ending.seconds < due_s and ending.status == (200 if from_batch else 504)
        verdicts.judge(good, f"a hang at batch {from_batch}: {ending}")
        _judge_the_end(server, verdicts)


def _judge_the_end(server: ServerProcess, verdicts: Verdicts) -> None:
    """After its engine is lost a server says so, and then ends with a status that is not 0."""
    began = time.monotonic()
    status = 200
    while status == 200 and time.monotonic() - began < READY_S:
        status = _ready(server)
        time.sleep(0.05)
    verdicts.judge(status in (0, 503), f"/readyz says {status}, {time.monotonic() - began:.1f} s after the loss")
    try:
        code = server.process.wait(90)
    except TimeoutError:
        code = 0
    verdicts.judge(code != 0, f"a server without an engine ended with {code}")


def _ready(server: ServerProcess) -> int:
    try:
        return httpx2.get(f"{server.url}/readyz", timeout=5).status_code
    except httpx2.HTTPError:
        return 0


def _be_slow(world: World, verdicts: Verdicts) -> None:
    with _ill(world, "slow", 1, "--between-batches-seconds", "0.5", "--for-batches", "1") as server:
        ending = ask(server.url, request_of(N_TEXTS))
        good = ending.code == "engine_stalled" and ending.seconds < 0.5 + SLACK_S
        verdicts.judge(good, f"a batch of 4 s where 0.5 s are allowed: {ending}")
        _wait_idle(server)
        time.sleep(4)
        after = ask(server.url, request_of(N_TEXTS))
        verdicts.judge(after.whole and server.process.poll() is None, f"a request after the slow ones: {after}")


def _have_a_bug(world: World, from_batch: int, verdicts: Verdicts) -> None:
    with _ill(world, "bug", from_batch, "--for-batches", "1") as server:
        ending = ask(server.url, request_of(N_TEXTS))
        told = ending.body + str(ending.message).encode()
        good = ending.code == "internal" and not ending.whole and b"nobody's business" not in told
        verdicts.judge(good, f"a bug at batch {from_batch}: {ending}")
        _wait_idle(server)
        verdicts.judge(ask(server.url, request_of(N_TEXTS)).whole, "a request after a bug")
        verdicts.judge("nobody's business" in server.log.read_text(), "the log does not hold the cause")


def _wait_idle(server: ServerProcess) -> None:
    deadline = time.monotonic() + 20
    while "stratoscope_running_requests 0.0" not in httpx2.get(f"{server.url}/metrics").text:
        assert time.monotonic() < deadline, "a place was not given back"
        time.sleep(0.05)


def _kill_in_vllm(world: World, victim: str, verdicts: Verdicts) -> None:
    flags = ("--ring-bytes", str(32 << 20), "--max-batch-tokens", "256")
    with ServerProcess(world, *flags) as server:
        big = request_of(200, words=60, select=["all"])
        assert expected_by(server.url, big) > 128 << 20, "the answer would fit into buffers"
        target = _find(server.pid, victim)
        ending = ask(server.url, big, on_first=target.kill)
        good = not ending.whole and ending.code == "engine_dead" and ending.seconds < READY_S
        verdicts.judge(good, f"{victim} killed: {ending}")
        _judge_the_end(server, verdicts)


def _find(pid: int, mark: str) -> psutil.Process:
    """A process of the engine; without workers of its own, the engine core does their work."""
    children = psutil.Process(pid).children(recursive=True)
    found = [process for process in children if mark in " ".join(process.cmdline())]
    if not found:
        found = [process for process in children if "EngineCore" in " ".join(process.cmdline())]
    assert found, [process.cmdline() for process in children]
    return found[-1]


def memory_that_does_not_suffice(world: World) -> Tally:
    verdicts = Verdicts()
    for from_batch in range(world.pick(3, N_TEXTS)):
        with _ill(world, "oom", from_batch, "--for-batches", "1") as server:
            ending = ask(server.url, request_of(N_TEXTS))
            status = 200 if from_batch else 503
            good = (ending.status, ending.code, ending.retryable, ending.whole) == (status, "engine_oom", True, False)
            verdicts.judge(good, f"out of memory at batch {from_batch}: {ending}")
            verdicts.judge(from_batch > 0 or ending.retry_after >= 1, f"no Retry-After: {ending}")
            _wait_idle(server)
            verdicts.judge(ask(server.url, request_of(N_TEXTS)).whole, f"a request after it, at batch {from_batch}")
    return verdicts.tally


NONSENSE: Final = (
    "nan", "infinite", "narrow", "short", "doubles", "a column too few", "a column too many", "no rows",
    "all rows twice", "another stimulus", "a stranger", "the wrong order",
)  # fmt: skip


def engines_that_deliver_nonsense(world: World) -> Tally:
    verdicts = Verdicts()
    for illness in NONSENSE:
        for from_batch in (0, 2) if world.scale == "full" else (2,):
            with _ill(world, illness, from_batch, "--for-batches", "1") as server:
                ending = ask(server.url, request_of(N_TEXTS, select=["all"]))
                good = not ending.whole and ending.code in ("invalid_block", "internal") and ending.n_kept < N_TEXTS
                verdicts.judge(good, f"{illness} at batch {from_batch}: {ending}")
                verdicts.judge(ending.reads_as_broken, f"{illness} at batch {from_batch} reads as a good stream")
    return verdicts.tally


FAULTS: Final = (
    Fault(
        "F17", "engines that hang, are killed, slow or have bugs", engines_that_hang_or_die,
        small_s=420, full_s=900, engines=("synthetic", "torch", "vllm"),
    ),
    Fault(
        "F18", "memory that does not suffice for a batch", memory_that_does_not_suffice,
        small_s=300, engines=("synthetic", "torch"),
    ),
    Fault("F19", "engines that deliver nonsense", engines_that_deliver_nonsense, small_s=120),
)  # fmt: skip
