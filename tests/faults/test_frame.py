"""The campaign's own frame: whatever is damaged is counted, and the exit code says so."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stratoscope_server.engines.synthetic import SyntheticTokenizer, activations
from stratoscope_wire import Column
from tests.faults.fault import ROOT
from tests.faults.tally import Tally
from tests.faults.truth import SyntheticTruth, check_tables

TEXTS = {"a": "A church and organ", "b": "Zürich, and its lake!"}


def campaign(*words: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "tests.faults.campaign", "--modules", "tests.faults.frame_checks", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_fault_that_is_survived_makes_a_clean_totals_line_and_exit_code_0() -> None:
    code, lines = campaign("--only", "GOOD", "--seed", "7")
    assert code == 0
    assert lines[0].startswith("seed 7,")
    assert lines[-1] == "faults injected 3, survived 3, items lost 0, items doubled 0, wrong values 0, hangs 0"


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("LOSE", "survived 3, items lost 1, items doubled 0, wrong values 0, hangs 0"),
        ("DOUBLE", "survived 3, items lost 0, items doubled 1, wrong values 0, hangs 0"),
        ("WRONG", "survived 3, items lost 0, items doubled 0, wrong values 1, hangs 0"),
        ("SUCCUMB", "survived 2, items lost 0, items doubled 0, wrong values 0, hangs 0"),
        ("HANG", "survived 0, items lost 0, items doubled 0, wrong values 0, hangs 1"),
        ("CRASH", "survived 0, items lost 0, items doubled 0, wrong values 0, hangs 0"),
        ("RAISE", "survived 0, items lost 0, items doubled 0, wrong values 0, hangs 0"),
    ],
)
def test_whatever_is_damaged_is_counted_and_makes_exit_code_1(fault: str, end: str) -> None:
    code, lines = campaign("--only", fault)
    assert code == 1
    assert lines[-1].endswith(end)


def test_a_hang_is_ended_and_the_faults_after_it_still_run() -> None:
    began = time.monotonic()
    code, lines = campaign("--only", "HANG,CRASH")
    assert time.monotonic() - began < 30
    assert code == 1
    assert any(line.startswith("CRASH") for line in lines)


def test_a_campaign_in_which_nothing_could_be_injected_is_no_success() -> None:
    code, lines = campaign("--only", "ABSENT")
    assert code == 1
    assert "not run: needs a tool that no machine has" in lines[1]


def test_a_fault_that_does_not_exist_is_refused_by_name() -> None:
    code, lines = campaign("--only", "F99")
    assert (code, lines) == (1, [])


def test_the_result_file_says_per_fault_what_was_injected(tmp_path: Path) -> None:
    campaign("--only", "GOOD,LOSE", "--seed", "7", "--out", str(tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seed"] == 7
    assert [fault["id"] for fault in result["faults"]] == ["GOOD", "LOSE"]
    assert result["total"] == Tally(6, 6, lost=1).to_dict()


def answer(*, change: float = 0.0, twice: bool = False, drop: bool = False) -> pa.Table:
    """What the synthetic engine says of the texts, or something that differs from it a little."""
    column = Column("resid_post", 3, 64, 4)
    rows = []
    for name, text in TEXTS.items():
        ids = SyntheticTokenizer().encode(text, add_special_tokens=True).token_ids
        states = activations(ids, column)
        places = [*range(len(ids))][: -1 if drop else None]
        rows += [(name, "all", place, int(ids[place]), states[place]) for place in places]
    rows += rows[:1] if twice else []
    matrix = np.stack([row[-1] for row in rows])
    matrix[1, 5] = np.nextafter(matrix[1, 5], np.float32(np.inf)) if change else matrix[1, 5]
    keys = [pa.array([row[k] for row in rows]) for k in range(4)]
    values = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 64)
    return pa.table([*keys, values], names=["stimulus_id", "selector", "position", "token_id", column.name])


def test_the_truth_computed_from_the_definition_is_what_the_engine_says() -> None:
    census = check_tables([answer()], TEXTS, ["all"], SyntheticTruth())
    assert census.there == {"a", "b"}
    assert census.is_clean


def test_the_smallest_change_of_one_value_is_wrong() -> None:
    assert check_tables([answer(change=1)], TEXTS, ["all"], SyntheticTruth()).wrong == 1


def test_a_row_that_is_there_twice_is_doubled_and_a_stimulus_without_its_last_row_is_torn() -> None:
    assert check_tables([answer(twice=True)], TEXTS, ["all"], SyntheticTruth()).doubled == 1
    assert check_tables([answer(drop=True)], TEXTS, ["all"], SyntheticTruth()).wrong == 2


def test_the_campaign_has_every_fault_that_the_table_of_threats_and_the_promises_name() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "tests.faults.campaign", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"^[FS]\d+", listed.stdout, re.MULTILINE))
    promised = {f"F{number}" for number in range(1, 33)} | {f"S{number}" for number in range(1, 16)}
    assert known == promised
    threats = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b[FS]\d+\b", threats))
    assert len(named) >= 20
    assert named <= known
