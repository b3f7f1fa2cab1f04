"""The built-in study on the real model and on its untrained twin, from the commands that the documentation gives."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stratoscope import Run, local_server
from stratoscope.study.compare import ABOVE, AT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAIN = pl.col("metric").is_in(["balanced_accuracy", "r2"])


def stratoscope(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("stratoscope")), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1500, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def trained(folder: Path, smollm2_url: str) -> Path:
    ended = stratoscope(
        "study", "run", "hierarchy", "--profile", "quick", "--server", smollm2_url, "--out", "trained", cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "trained"


@pytest.fixture(scope="module")
def twin_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ["--model", "smollm2-135m", "--dtype", "float32", "--random-weights", "0"]
    log = tmp_path_factory.mktemp("twin") / "server.log"
    with local_server.local_server(flags, log, say=lambda _: None) as client:
        yield client.base_url


@pytest.fixture(scope="module")
def twin(folder: Path, twin_url: str) -> Path:
    ended = stratoscope(
        "study", "run", "hierarchy", "--profile", "quick", "--server", twin_url, "--out", "twin", cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "twin"


@pytest.fixture(scope="module")
def compared(trained: Path, twin: Path, folder: Path) -> tuple[Path, str]:
    ended = stratoscope("study", "compare", trained, twin, "--out", "compared", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "compared", ended.stdout


def test_the_quick_study_runs_to_a_report_with_every_table(trained: Path) -> None:
    claims = pl.read_parquet(trained / "tables" / "claims.parquet")
    assert claims.height == 6
    assert set(claims["verdict"]) <= {"holds", "does not hold", "cannot be told"}
    curves = pl.read_parquet(trained / "tables" / "curves.parquet")
    assert set(curves["experiment"]) == {
        "item", "relation", "analogy", "document", "list", "item-far", "relation-far"
    }  # fmt: skip
    assert curves.filter(MAIN, site="resid_post")["layer"].unique().sort().to_list() == list(range(0, 30, 3))
    page = (trained / "report.html").read_text("utf-8")
    assert "smollm2-135m" in page
    assert not re.search(r'(?:src|href)="https?://(?!arxiv\.org)', page)


def test_a_real_model_knows_which_objects_are_alive(trained: Path) -> None:
    peaks = pl.read_parquet(trained / "tables" / "peaks.parquet")
    row = peaks.filter(experiment="item", target="living", metric="balanced_accuracy", site="resid_post").row(
        0, named=True
    )
    assert row["p_corrected"] <= 0.05
    assert row["low"] > max(row["text_score"], row["shuffled_high"])


def test_texts_that_experiments_share_are_in_the_run_once(trained: Path) -> None:
    stimuli = {path.stem: pl.read_parquet(path) for path in (trained / "stimuli").glob("*.parquet")}
    wanted = pl.concat([frame.select("stimulus_id", "text") for frame in stimuli.values()])
    (run,) = [Run.open(path) for path in (trained / "activations").iterdir() if not path.name.startswith("heads")]
    assert wanted.height > wanted["stimulus_id"].n_unique()
    assert sorted(run.stimuli()["id"]) == sorted(wanted["stimulus_id"].unique())


def test_the_text_of_an_experiment_gives_the_activations_that_its_probes_saw(trained: Path, smollm2_url: str) -> None:
    """From the study's folder back to the server: the stored row of a text is the row of that text."""
    from stratoscope import Client

    frame = pl.read_parquet(trained / "stimuli" / "analogy.parquet")[::100]
    (run,) = [Run.open(path) for path in (trained / "activations").iterdir() if not path.name.startswith("heads")]
    row_of = {name: row for row, name in enumerate(run.stimuli()["id"])}
    with Client(smollm2_url) as client:
        asked = client.activations(frame["text"].to_list(), sites=["attn_out"], layers=[12])["attn_out", 12]
    stored = run.activations()["attn_out", 12][[row_of[name] for name in frame["stimulus_id"]]]
    assert np.linalg.norm(stored - np.asarray(asked)) / np.linalg.norm(stored) < 1e-5


def test_the_untrained_twin_is_at_its_baselines_and_the_comparison_says_so(compared: tuple[Path, str]) -> None:
    out, printed = compared
    baseline = pl.read_parquet(out / "tables" / "baseline.parquet").filter(~pl.col("is_control"))
    of_model = {name: rows["verdict"].to_list() for (name,), rows in baseline.group_by("model")}
    assert set(of_model) == {"smollm2-135m", "smollm2-135m-random-0"}
    assert of_model["smollm2-135m"].count(ABOVE) >= 2  # the precondition: there is something to lose
    assert of_model["smollm2-135m-random-0"].count(AT) >= len(of_model["smollm2-135m-random-0"]) - 1
    page = (out / "comparison.html").read_text("utf-8")
    sentence = re.search(r"smollm2-135m-random-0: \d+ of \d+ targets are above their baselines", printed)
    assert sentence is not None
    assert sentence.group() in page


def test_runs_of_other_profiles_are_not_compared(trained: Path, folder: Path, synthetic_url: str) -> None:
    mine = folder / "own"
    mine.mkdir()
    (mine / "t.csv").write_text("text,label,g\n" + "".join(f"word{i},{i % 2},{i % 10}\n" for i in range(40)))
    (mine / "s.yaml").write_text(
        'study: other\nversion: "1"\ntitle: O\nabout: O\nstatistics: {permutations: 0, splits: 1}\nexperiments:\n'
        "  - {name: o, title: O, question: Q, control: C, group: g, texts: {design: rows, table: t.csv},\n"
        "     targets: [{label: label}]}\n"
    )
    ended = stratoscope("study", "run", "s.yaml", "--server", synthetic_url, "--out", "run", cwd=mine)
    assert ended.returncode == 0, ended.stderr
    refused = stratoscope("study", "compare", trained, mine / "run", "--out", "c", cwd=mine)
    assert refused.returncode != 0
    assert "different studies" in refused.stderr
    assert not (mine / "c").exists()


def test_the_pages_about_studies_can_be_followed(folder: Path, smollm2_url: str) -> None:
    """Every block of your-own-study.md, in order, in one folder."""
    page = (ROOT / "docs" / "your-own-study.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    here = folder / "newcomer"
    here.mkdir()
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks:
        code = block.replace("http://127.0.0.1:8000", smollm2_url)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=here, env=environ, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{block}\n{ended.stdout}{ended.stderr}"
    assert (here / "runs" / "animals" / "report.html").exists()
    flags = ["--engine", "synthetic", "--plants", str(here / "plants.json")]
    with local_server.local_server(flags, here / "server.log", say=lambda _: None) as client:
        ended = stratoscope("study", "run", "animals.yaml", "--server", client.base_url, "--out", "planted", cwd=here)
    assert ended.returncode == 0, ended.stderr
    peaks = pl.read_parquet(here / "planted" / "tables" / "peaks.parquet").filter(MAIN, site="resid_post")
    farm, weight = (peaks.filter(target=name).row(0, named=True) for name in ("farm", "weight"))
    assert farm["peak_layer"] == 4
    assert farm["p_corrected"] <= 0.05
    assert weight["p_corrected"] > 0.05
