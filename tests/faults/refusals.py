"""F24, F29 and F30: what must be refused is refused, by name, and nothing is written."""

import hashlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import polars as pl

from stratoscope.captures import capture_columns, make_capture
from stratoscope.cli import exits
from stratoscope.client import Client
from stratoscope.errors import RunLockedError
from stratoscope.store.measurement import Measurement
from stratoscope.store.writer import RunWriter
from tests.faults.engine import STEERED
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess, run_client
from tests.faults.site import Site
from tests.faults.tally import Tally, one

LOCKED_S: Final = 1.0

PACE: Final = ("--pace", "0.5")
"""So slow that a collection is still in its middle when it is disturbed there."""


def write_to_a_run_twice(world: World) -> Tally:
    """The first writer is halted in the middle, so that whatever changes is the second one's doing."""
    tally = Tally()
    with ServerProcess(world, program=STEERED, first=PACE) as server:
        site = Site.make(world.folder / "site", server.url, 240)
        first = site.start("--timeout", "30")
        try:
            while not site.census(whole=False).there:
                assert first.poll() is None, "the first client must still be at work"
                time.sleep(0.05)
            first.send_signal(signal.SIGSTOP)
            assert first.poll() is None, "it must be halted in the middle"
            before = digests(site.run)
            tally += one(_writer_is_refused_at_once(site))
            command: list[str | Path] = [
                "collect",
                site.table,
                "--out",
                site.run,
                "--server",
                server.url,
                "--layers",
                "3,8",
            ]
            second = run_client([*command, "--sites", "resid_post"])
            print(second.stderr, flush=True)
            tally += one(second.returncode == exits.LOCKED and "writing to the run" in second.stderr)
            tally += one(digests(site.run) == before)
        finally:
            first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 0
        outcome, _ = site.judge(whole=True)
    return tally + outcome


def _writer_is_refused_at_once(site: Site) -> bool:
    with Client(site.url) as client:
        card = client.model()
    capture = make_capture(["resid_post"], [3, 8], ["last"])
    measurement = Measurement(card, capture, capture_columns(capture, card), add_special_tokens=True)
    began = time.monotonic()
    try:
        RunWriter(site.run, measurement).close()
    except RunLockedError:
        return time.monotonic() - began < LOCKED_S
    return False


def swap_the_model(world: World) -> Tally:
    """In the middle of a run the server comes back with another model; then it is asked to go on with it."""
    tally = Tally()
    plants = world.folder / "plants.json"
    plants.write_text('{"n_layers": 12, "facts": []}')
    for number in range(world.pick(1, 5)):
        with ServerProcess(world, program=STEERED, first=PACE) as server:
            site = Site.make(world.folder / f"site{number}", server.url, 240)
            client = site.start("--timeout", "30")
            while not site.census(whole=False).there:
                assert client.poll() is None
                time.sleep(0.05)
            time.sleep(world.random.uniform(0, 0.3))
            server.kill()
            server.start("--plants", str(plants))
            server.wait_ready()
            tally += one(client.wait(120) == exits.MISMATCH)
            before = digests(site.run)
            tally += one(site.collect() == exits.MISMATCH)
            tally += one(digests(site.run) == before)
            server.kill()
            server.restart()
            assert site.collect() == 0
            outcome, _ = site.judge(whole=True)
            tally += outcome
    return tally


def fit_on_the_same_text_twice(world: World) -> Tally:
    """A text that could be trained on and tested on, and an id that is there twice."""
    tally = Tally()
    with ServerProcess(world) as server:
        rows = [{"id": f"s{k}", "text": f"text {k}", "label": k % 2, "group": f"g{k // 2}"} for k in range(24)]
        twin = [row | {"text": "text 3"} if row["id"] == "s20" else row for row in rows]
        twice = [*rows, rows[3]]
        collected = _collect(world.folder / "twin", twin, server.url)
        assert collected.returncode == 0, collected.stderr
        probe = run_client(["probe", world.folder / "twin/run", "--label", "label", "--group", "group", "--jobs", "1"])
        print(probe.stderr, flush=True)
        named = "'text 3'" in probe.stderr and "g1" in probe.stderr and "g10" in probe.stderr
        tally += one(probe.returncode != 0 and named and "Traceback" not in probe.stderr)
        refused = _collect(world.folder / "twice", twice, server.url)
        print(refused.stderr, flush=True)
        tally += one(refused.returncode == exits.USAGE and "'s3'" in refused.stderr)
    return tally


def _collect(folder: Path, rows: Sequence[dict[str, object]], url: str) -> CompletedProcess[str]:
    folder.mkdir()
    pl.DataFrame(rows).write_csv(folder / "table.csv")
    words: list[str | Path] = ["collect", folder / "table.csv", "--out", folder / "run", "--server", url]
    return run_client([*words, "--layers", "3", "--sites", "resid_post"])


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a run but its lock and SQLite's shared memory, which readers touch."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock" and not path.name.endswith("-shm")
    }


FAULTS: Final = (
    Fault("F24", "a second client on the same run", write_to_a_run_twice, 90),
    Fault("F29", "another model behind the address in the middle of a run", swap_the_model, 120),
    Fault("F30", "the same text in training and test, an id twice", fit_on_the_same_text_twice, 120),
)
