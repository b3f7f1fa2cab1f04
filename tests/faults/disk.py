"""F25 and F26: the disk is full at every step, and syncing fails at every call."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stratoscope.cli import exits
from tests.faults.collecting import BEFORE_A_SHARD, OF_A_SHARD
from tests.faults.fault import ROOT, Fault, NotHereError, World
from tests.faults.filling import FILLER
from tests.faults.processes import ServerProcess, environment
from tests.faults.site import Site
from tests.faults.tally import Tally

N_STIMULI: Final = 96
DISK_MIB: Final = 16
STEPS: Final = tuple(f"{moment} {step}" for step in (*BEFORE_A_SHARD, *OF_A_SHARD) for moment in ("before", "after"))
FAILED_SYNC: Final = re.compile(r"\b(?:fsync|fdatasync)\(\d+<(?P<path>[^>]+)>\)\s+= -1 EIO")


def fill_the_disk_at_every_step(world: World) -> Tally:
    tally = Tally()
    with ServerProcess(world) as server, small_disk(world.folder / "disk") as disk:
        for number, step in enumerate(STEPS[:: world.pick(2, 1)]):
            site = _site_on(disk / str(number), world.folder / f"site{number}", server.url)
            status = site.collect("--full", step)
            said = site.log.read_text().splitlines()[-1:]
            told = status == exits.STORAGE and any("space" in line.lower() for line in said)
            outcome, n_there = site.judge(whole=False)
            print(f"{step}: exit {status}, {n_there} there, {said}", flush=True)
            (site.run / FILLER).unlink()
            went_on = site.collect() == 0 and site.judge(whole=True)[0].is_clean and not site.leftovers()
            tally += outcome if told and went_on else Tally(1, 0, outcome.lost, outcome.doubled, outcome.wrong)
            shutil.rmtree(site.run.resolve())
    return tally


def start_on_a_small_disk(world: World) -> Tally:
    """Disks of many sizes, each too small for the run: whatever is committed is good, and more room lets it go on."""
    tally = Tally()
    with ServerProcess(world) as server:
        for number in range(world.pick(3, 40)):
            n_kib = world.random.randrange(40, 1600)
            with small_disk(world.folder / f"disk{number}", n_kib) as disk:
                site = _site_on(disk, world.folder / f"site{number}", server.url, 480)
                status = site.collect()
                outcome, n_there = site.judge(whole=False)
                print(f"{n_kib} KiB: exit {status}, {n_there} there", flush=True)
                _mount("remount,size=64m", disk)
                good = status == exits.STORAGE and site.collect() == 0 and site.judge(whole=True)[0].is_clean
                tally += outcome if good else Tally(1, 0, outcome.lost, outcome.doubled, outcome.wrong)
    return tally


def _site_on(disk: Path, folder: Path, url: str, n_stimuli: int = N_STIMULI) -> Site:
    """A site whose run alone is on the disk: its log must not be in want of room."""
    disk.mkdir(exist_ok=True)
    site = Site.make(folder, url, n_stimuli)
    site.run.symlink_to(disk)
    return site


def fail_every_sync(world: World) -> Tally:
    """Each fsync and fdatasync of a collection fails once: the client stops, and trusts nothing of that file."""
    if shutil.which("strace") is None:
        raise NotHereError("needs strace, which makes a chosen system call fail")
    tally, number = Tally(), 0
    step = world.pick(6, 1)
    with ServerProcess(world) as server:
        while True:
            number += 1 if number == 0 else step
            site = Site.make(world.folder / f"site{number}", server.url, N_STIMULI)
            status, path, again = _collect_with_failing_sync(site, number)
            if not path:
                assert status == 0, "without a fault it must end well"
                break
            outcome, n_there = site.judge(whole=False)
            print(f"sync {number}: {Path(path).name}, exit {status}, {n_there} there, again {again}", flush=True)
            good = status == exits.STORAGE and not again and "Traceback" not in site.log.read_text()
            good &= site.collect() == 0 and site.judge(whole=True)[0].is_clean and not site.leftovers()
            tally += outcome if good else Tally(1, 0, outcome.lost, outcome.doubled, outcome.wrong)
            shutil.rmtree(site.folder)
    return tally


def _collect_with_failing_sync(site: Site, number: int) -> tuple[int, str, bool]:
    """Return the exit status, the file whose sync failed, and whether the client's own code tried it again."""
    trace = site.folder / "strace"
    inject = f"inject=fsync,fdatasync:error=EIO:when={number}"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync", "-e", inject]
    with site.log.open("ab") as log:
        done = subprocess.run(
            [*command, *site.command()], cwd=ROOT, env=environment(), stdout=log, stderr=log, timeout=120, check=False
        )
    before, _, after = trace.read_text().partition("= -1 EIO")
    if not after:
        return done.returncode, "", False
    failed = FAILED_SYNC.search(f"{before.splitlines()[-1]}= -1 EIO")
    assert failed is not None, before[-200:]
    # SQLite syncs its own files again when it is closed, after it has taken back what was not written.
    is_ours = "ledger.sqlite" not in failed["path"] and not Path(failed["path"]).is_dir()
    return done.returncode, failed["path"], is_ours and failed["path"] in after


@contextlib.contextmanager
def small_disk(folder: Path, n_kib: int = DISK_MIB << 10) -> Iterator[Path]:
    """A file system of a few MiB in memory."""
    if os.geteuid() != 0:
        raise NotHereError("needs root, to mount a small file system")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_kib}k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotHereError(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _mount(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-o", options, folder], check=True, stdout=sys.stderr)


FAULTS: Final = (
    Fault("F25", "a full disk before and after every step", fill_the_disk_at_every_step, 150, 300),
    Fault("F25S", "disks that are too small", start_on_a_small_disk, 90, 600),
    Fault("F26", "every fsync and fdatasync fails once", fail_every_sync, 150, 1200),
)
