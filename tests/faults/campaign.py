"""The fault campaign: `python -m tests.faults.campaign`, or `make faults`. Exit code 1 if anything was damaged.

Every fault runs in a process group of its own with a hard deadline, so that a hang or a crash is counted and contained.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from tests.faults.fault import ROOT, Engine, Fault, Scale
from tests.faults.one import RESULT, load
from tests.faults.tally import Tally

MODULES: Final = (
    "tests.faults.engine",
    "tests.faults.lies",
    "tests.faults.readers",
    "tests.faults.cuts",
    "tests.faults.kills",
    "tests.faults.network",
    "tests.faults.refusals",
    "tests.faults.surroundings",
    "tests.faults.disk",
    "tests.faults.repairs",
    "tests.faults.crashes",
    "tests.faults.power_failures",
    "tests.faults.stopping",
    "tests.faults.departures",
    "tests.faults.ill_engines",
    "tests.faults.storm",
    "tests.faults.sources",
    "tests.faults.contract",
    "tests.faults.hostile",
    "tests.faults.canary",
    "tests.faults.doors",
    "tests.faults.payloads",
    "tests.faults.sockets",
    "tests.faults.soak",
)
"""Modules with a constant FAULTS, in the order in which they are run."""

TAIL_LINES: Final = 25

PATIENCE: Final = {"synthetic": 1, "torch": 3, "vllm": 10}
"""How much longer a fault may take with an engine that takes long to start."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one fault; `note` says why it counts as it does, if it is not plain."""

    fault: Fault
    tally: Tally
    seconds: float
    note: str = ""
    ran: bool = True

    def line(self) -> str:
        name = f"{self.fault.id:<4} {self.fault.title:<58}"
        if not self.ran:
            return f"{name} not run: {self.note}"
        counts = f"injected {self.tally.injected:>6}  survived {self.tally.survived:>6}  {self.seconds:7.1f} s"
        damage = "" if self.tally.is_clean else f"  DAMAGE: {self.tally.totals_line()}"
        return f"{name} {counts}{damage}{f'{chr(10)}{self.note}' if self.note else ''}"


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    faults = list(_chosen(options))
    if options.list:
        for _, fault in faults:
            print(f"{fault.id:<4} {fault.title}")
        return 0
    print(f"seed {options.seed}, scale {options.scale}, engine {options.engine}", flush=True)
    outcomes = []
    for module, fault in faults:
        outcomes.append(_run(module, fault, options))
        print(outcomes[-1].line(), flush=True)
    total = sum((outcome.tally for outcome in outcomes), Tally())
    if options.out is not None:
        _write(options, outcomes, total)
    print(total.totals_line(), flush=True)
    return 0 if total.is_clean and total.injected else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--scale", choices=get_args(Scale), default="small")
    parser.add_argument("--only", default="", help="faults, separated by commas, such as F7,F9")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--engine", choices=get_args(Engine), default="synthetic")
    parser.add_argument("--vllm-python", default=str(ROOT / ".venv-vllm/bin/python"), help="interpreter that has vLLM")
    parser.add_argument("--modules", default=",".join(MODULES), help="where to look for faults")
    parser.add_argument("--out", type=Path, help="write what came of it to this JSON file")
    parser.add_argument("--list", action="store_true", help="list the faults")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, Fault]]:
    known = [(module, fault) for module in options.modules.split(",") for fault in load(module)]
    only = set(options.only.split(",")) - {""}
    unknown = only - {fault.id for _, fault in known}
    if unknown:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}; --list names them")
    for module, fault in known:
        if options.engine in fault.engines and (not only or fault.id in only):
            yield module, fault


def _run(module: str, fault: Fault, options: argparse.Namespace) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"fault-{fault.id}-"))
    python = options.vllm_python if options.engine == "vllm" else sys.executable
    words = [module, fault.id, options.scale, str(options.seed), options.engine, python, str(folder)]
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_own_mounts(), sys.executable, "-m", "tests.faults.one", *words],
            cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        hung = not _ends(process, fault.limit_s(options.scale) * PATIENCE[options.engine])
        _end_group(process)
    outcome = _outcome(fault, folder, time.monotonic() - began, hung=hung)
    if outcome.tally.is_clean:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _own_mounts() -> list[str]:
    """Where possible, what a fault mounts goes away with it, even if it is ended in the middle."""
    return ["unshare", "--mount"] if os.geteuid() == 0 and _may_unshare() else []


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def _ends(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(fault: Fault, folder: Path, seconds: float, *, hung: bool) -> Outcome:
    result = folder / RESULT
    if hung:
        return Outcome(fault, Tally(injected=1, hangs=1), seconds, f"still running at its deadline; {_tail(folder)}")
    if not result.exists():
        return Outcome(fault, Tally(injected=1), seconds, f"it crashed; {_tail(folder)}")
    counts = json.loads(result.read_text())
    if "not_here" in counts:
        return Outcome(fault, Tally(), seconds, counts["not_here"], ran=False)
    tally = Tally(**counts)
    return Outcome(fault, tally, seconds, "" if tally.is_clean else _tail(folder))


def _tail(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"kept in {folder}:", *(f"    {line}" for line in lines)])


def _write(options: argparse.Namespace, outcomes: Sequence[Outcome], total: Tally) -> None:
    faults = [
        {"id": o.fault.id, "title": o.fault.title, "ran": o.ran, "seconds": round(o.seconds, 1), **o.tally.to_dict()}
        for o in outcomes
    ]
    chosen = {"seed": options.seed, "scale": options.scale, "engine": options.engine}
    options.out.write_text(json.dumps({**chosen, "total": total.to_dict(), "faults": faults}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
