"""F28: clocks that jump, locales, a strict umask, folders with spaces and letters of every kind: the same result."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.faults.fault import ROOT, Fault, NotHereError, World
from tests.faults.processes import ServerProcess, environment
from tests.faults.site import Site
from tests.faults.tally import Tally

N_STIMULI: Final = 64


def collect_in_odd_surroundings(world: World) -> Tally:
    tally = Tally()
    with ServerProcess(world) as server:
        for number, (name, (folder, variables, umask)) in enumerate(SURROUNDINGS.items()):
            site = Site.make(world.folder / f"{number}{folder}", server.url, N_STIMULI)
            status = _collect(site, variables, umask)
            outcome, _ = site.judge(whole=True)
            modes = {path.stat().st_mode & 0o077 for path in site.run.rglob("*") if path.is_file()}
            private = umask != 0o077 or modes == {0}
            print(f"{name}: exit {status}, {private=}", flush=True)
            tally += outcome if status == 0 and private else Tally(1, 0, outcome.lost)
    return tally


def let_the_clock_jump(world: World) -> Tally:
    """The client's wall clock jumps by days at every reading, through an interrupted run and its resumption."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotHereError("needs a C compiler, for a clock that jumps")
    library = world.folder / "jumping_clock.so"
    source = Path(__file__).with_name("jumping_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    clock = {"LD_PRELOAD": str(library)}
    shown = subprocess.run(["date", "+%s"], env=environment(**clock), capture_output=True, text=True, check=True).stdout
    assert abs(int(shown) - int(subprocess.check_output(["date", "+%s"]))) > 60, "the clock was to jump"
    tally = Tally()
    with ServerProcess(world) as server:
        for number in range(world.pick(1, 10)):
            site = Site.make(world.folder / f"site{number}", server.url, N_STIMULI)
            _collect(site, clock, 0o022, "--fatal", "after commit")
            status = _collect(site, clock, 0o022)
            outcome, _ = site.judge(whole=True)
            tally += outcome if status == 0 else Tally(1, 0, outcome.lost)
    return tally


def _collect(site: Site, variables: dict[str, str], umask: int, *options: str) -> int:
    with site.log.open("ab") as log:
        return subprocess.run(
            site.command(*options), cwd=ROOT, env=environment(**variables), umask=umask, stdout=log, stderr=log,
            timeout=120, check=False,
        ).returncode  # fmt: skip


SURROUNDINGS: Final[dict[str, tuple[str, dict[str, str], int]]] = {
    "spaces": (" a folder with spaces ", {}, 0o022),
    "letters": ("Zürich 冬 \U0001f52d", {}, 0o022),
    "quotes": ('it\'s "so" & 100% #1?', {}, 0o022),
    "umask 077": ("", {}, 0o077),
    "locale C": ("Zürich", {"LC_ALL": "C", "LANG": "C"}, 0o022),
    "no UTF-8 mode": ("", {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, 0o022),
    "time zone": ("", {"TZ": "Pacific/Kiritimati"}, 0o022),
    "no home": ("", {"HOME": os.devnull}, 0o022),
}

FAULTS: Final = (
    Fault("F28", "odd paths, locales, time zones, a strict umask", collect_in_odd_surroundings, 90),
    Fault("F28C", "a wall clock that jumps", let_the_clock_jump),
)
