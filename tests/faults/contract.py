"""The API's own description, turned against it by Schemathesis."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.faults.fault import Fault, World
from tests.faults.keys import GOOD_KEY, KeyedServer
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

CONFIG: Final = """\
[checks]
# No JSON schema can say that ids are unique, that a span lies in its text, or what layers and tokens a model has.
positive_data_acceptance.expected-statuses = ["2xx", 413, 422]
"""
OPERATIONS: Final = ("GET /healthz", "GET /readyz", "GET /metrics", "GET /v1/model", "GET /v1/limits")
WITH_BODY: Final = ("POST /v1/activations", "POST /v1/plan")
MAX_ROUNDS: Final = 12
FIRST_CASES: Final = 50


def schemathesis_with_all_checks(world: World) -> Tally:
    verdicts = Verdicts()
    (world.folder / "schemathesis.toml").write_text(CONFIG)
    with KeyedServer(world) as server:
        everything = _run(world, server, FIRST_CASES, ())
        assert set(everything["valid_rates"]) == {*OPERATIONS, *WITH_BODY}, everything["valid_rates"]
        _judge(verdicts, everything)
        for operation in WITH_BODY:
            _repeat(world, server, operation, verdicts)
        verdicts.judge(server.process.poll() is None, "the server ended")
    return verdicts.tally


def _repeat(world: World, server: ServerProcess, operation: str, verdicts: Verdicts) -> None:
    """Go on with one operation until it has had its cases: Hypothesis ends a round early when it finds nothing new."""
    n_cases = n_accepted = 0
    for _ in range(MAX_ROUNDS):
        report = _run(world, server, _n_cases(world), ("--include-name", operation, "--phases", "fuzzing"))
        _judge(verdicts, report)
        n_cases += report["test_cases"]["generated"]
        n_accepted += report["valid_rates"][operation]["fuzzing"]["accepted"]
        if n_cases >= _n_cases(world) and n_accepted:
            return
    verdicts.judge(False, f"{operation}: only {n_cases} cases, {n_accepted} accepted")


def _judge(verdicts: Verdicts, report: dict[str, Any]) -> None:
    failed = report["test_cases"]["with_failures"] + report["test_cases"]["errored"]
    verdicts.tally += Tally(report["test_cases"]["generated"] - failed, report["test_cases"]["generated"] - failed)
    for failure in [*report["failures"], *report["errors"]]:
        verdicts.judge(False, json.dumps(failure)[:2000])
    verdicts.judge(report["exit_code"] == 0 and report["complete"], report["stop_reason"])


def _run(world: World, server: ServerProcess, n_cases: int, flags: tuple[str, ...]) -> dict[str, Any]:
    """One run of the command, all checks, and its report."""
    out = world.folder / "report.json"
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json",
        "--header", f"Authorization: Bearer {GOOD_KEY}", "--checks", "all",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(n_cases),
        "--seed", str(world.random.randrange(1 << 31)), "--continue-on-failure", "--no-shrink",
        "--report", "json", "--report-json-path", str(out), *flags,
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=world.folder, capture_output=True, text=True, check=False)
    assert out.exists(), ended.stdout[-3000:] + ended.stderr[-3000:]
    report: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return report


def _n_cases(world: World) -> int:
    return world.pick(50, 1000)


FAULTS: Final = (
    Fault("S3", "Schemathesis: all checks on every operation", schemathesis_with_all_checks, small_s=120, full_s=3600),
)
