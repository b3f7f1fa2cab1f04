"""F9, F20 and F21: client or server are killed, at random and at every step of a commit."""

import signal
import time
from dataclasses import replace
from typing import Final

from tests.faults.collecting import BEFORE_A_SHARD, OF_A_SHARD
from tests.faults.engine import STEERED
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.recorded_truth import RecordedTruth
from tests.faults.scene import MODEL_FLAGS, few_tokens
from tests.faults.site import Site
from tests.faults.tally import Tally

WINDOW_S: Final = 0.6
"""A client is killed at a random moment of the time that a collection of `N_STIMULI` takes."""

N_STIMULI: Final = 480


def kill_the_client_at_random(world: World) -> Tally:
    tally, n_runs = Tally(), 0
    n_kills = world.pick(12, 200)
    with ServerProcess(world, program=STEERED, first=("--pace", "0.02")) as server:
        while tally.injected < n_kills:
            site = Site.make(world.folder / f"run{n_runs}", server.url, N_STIMULI)
            n_runs += 1
            tally += _kill_until_done(world, site, n_kills - tally.injected)
            assert site.collect() == 0
            outcome, _ = site.judge(whole=True)
            tally += Tally(0, 0, outcome.lost, outcome.doubled, outcome.wrong)
            assert not site.leftovers()
    return tally


def _kill_until_done(world: World, site: Site, n_kills: int) -> Tally:
    tally, n_there = Tally(), 0
    while tally.injected < n_kills and n_there < N_STIMULI:
        process = site.start()
        time.sleep(world.random.uniform(0, WINDOW_S))
        process.send_signal(signal.SIGKILL)
        if process.wait(60) == 0:
            break
        outcome, n_there = site.judge(whole=False, n_before=n_there)
        tally += outcome
    return tally


def kill_the_client_at_every_step(world: World) -> Tally:
    tally, n_there = Tally(), 0
    with ServerProcess(world) as server:
        site = Site.make(world.folder / "site", server.url, N_STIMULI)
        for step in (*BEFORE_A_SHARD, *OF_A_SHARD):
            for moment in ("before", "after"):
                status = site.collect("--fatal", f"{moment} {step}")
                assert status == -signal.SIGKILL, f"it was to die {moment} {step}, not to end with {status}"
                outcome, n_there = site.judge(whole=False, n_before=n_there)
                tally += outcome
        assert 0 < n_there < N_STIMULI
        assert site.collect() == 0
        outcome, _ = site.judge(whole=True)
        assert not site.leftovers()
    return tally + Tally(0, 0, outcome.lost, outcome.doubled, outcome.wrong)


def kill_the_server(world: World) -> Tally:
    """The server dies in the middle of an answer and comes back; the client goes on by itself."""
    tally = Tally()
    n_kills = world.pick(3, 50) if world.engine == "synthetic" else world.pick(1, 3)
    flags = (*MODEL_FLAGS[world.engine], *few_tokens(world))
    with ServerProcess(world, *flags, program=STEERED, first=("--pace", "0.05")) as server:
        site = Site.make(world.folder / "site", server.url, 60 * n_kills)
        if world.engine != "synthetic":
            site = replace(site, truth=RecordedTruth.ask(server.url, site.texts, [3, 8]))
        client = site.start("--timeout", "30")
        for _ in range(n_kills):
            n_there = _await_more(site)
            time.sleep(world.random.uniform(0, 0.5))
            assert client.poll() is None, "it must be killed in the middle of a collection"
            assert server.kill() == -signal.SIGKILL
            outcome, _ = site.judge(whole=False, n_before=n_there)
            tally += outcome
            server.restart()
        hung = client.wait(600) != 0
    outcome, _ = site.judge(whole=True)
    return tally + Tally(0, -int(hung), outcome.lost, outcome.doubled, outcome.wrong)


def _await_more(site: Site, patience_s: float = 90) -> int:
    """Wait until stimuli were committed that were not there now; return how many there are."""
    deadline = time.monotonic() + patience_s
    before = len(site.census(whole=False).there)
    while (now := len(site.census(whole=False).there)) == before:
        assert time.monotonic() < deadline, "the collection does not go on"
        time.sleep(0.1)
    return now


FAULTS: Final = (
    Fault("F20", "SIGKILL of the client at random", kill_the_client_at_random, 120, 1800),
    Fault("F21", "SIGKILL of the client before and after every step", kill_the_client_at_every_step, 120, 300),
    Fault(
        "F9",
        "SIGKILL of the server in the middle of an answer",
        kill_the_server,
        120,
        1800,
        ("synthetic", "torch", "vllm"),
    ),
)
