"""Ask the OSV database for known faults of everything that is locked; `make audit` runs it.

A database that is not reached, or that answers with nothing, looks like one without findings. So it is first asked for
a release that has known faults, and only believed if it knows them.

Exit codes: 0 nothing is known, 1 something is, 3 nothing could be audited. With ``AUDIT_OFFLINE=warn`` the last is said
and ends with 0, for a machine that cannot reach the database.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
LOCKS: Final = (
    "locks/build.txt",
    "locks/client.txt",
    "locks/model.txt",
    "locks/server-cpu.txt",
    "deploy/requirements-gpu.txt",
)
KNOWN_FAULTY: Final = "jinja2==2.4.1"
OSV_URL_VARIABLE: Final = "AUDIT_OSV_URL"
OFFLINE_VARIABLE: Final = "AUDIT_OFFLINE"
FOUND, NOT_AUDITED = 1, 3

Finding = tuple[str, str, str]


class NotAuditedError(Exception):
    """The database could not be asked, or not for everything."""


def query(requirements: Path, options: Sequence[str]) -> list[Finding]:
    """Return name, version and fault of every known fault in a list of pinned releases.

    Raises
    ------
    NotAuditedError
        If one of them could not be asked for.
    """
    osv = ["--osv-url", os.environ[OSV_URL_VARIABLE]] if os.environ.get(OSV_URL_VARIABLE) else []
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", *options]
    command += ["--strict", "--vulnerability-service", "osv", *osv, "--format", "json", "--progress-spinner", "off"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    try:
        report: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        last = ended.stderr.strip().splitlines()[-1:] or [f"pip-audit ended with code {ended.returncode}"]
        raise NotAuditedError(last[0]) from None
    skipped = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    if skipped or not report["dependencies"]:
        raise NotAuditedError(f"{requirements.name}: not asked for {', '.join(skipped) or 'anything'}")
    return [(one["name"], one["version"], fault["id"]) for one in report["dependencies"] for fault in one["vulns"]]


def check_database() -> None:
    """Return if the database knows what is known.

    Raises
    ------
    NotAuditedError
        If not.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known-faulty.txt"
        path.write_text(KNOWN_FAULTY + "\n", encoding="utf-8")
        if not query(path, ["--no-deps"]):
            raise NotAuditedError(f"it knows of no fault in {KNOWN_FAULTY}, which has some")


def main() -> int:
    """Audit every lock."""
    try:
        check_database()
        found = {lock: query(ROOT / lock, ["--require-hashes"]) for lock in LOCKS}
    except NotAuditedError as error:
        sys.stderr.write(f"NOT AUDITED: the database of known faults was not reached or not believed: {error}\n")
        return 0 if os.environ.get(OFFLINE_VARIABLE) == "warn" else NOT_AUDITED
    for lock, faults in found.items():
        for name, version, fault in faults:
            sys.stdout.write(f"{lock}: {name} {version} has {fault}\n")
    sys.stdout.write(f"audited {len(found)} locks: {sum(map(len, found.values()))} known faults\n")
    return FOUND if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
