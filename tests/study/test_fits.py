"""Fits of a study: rows that belong together, halves that share nothing, and numbers that a plain script gives."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope import Client, Run, StimulusTable, collect
from stratoscope.errors import RunError
from stratoscope.probes import DesignError
from stratoscope.probes.sources import ChosenColumns
from stratoscope.study.catalogue import parse_study
from stratoscope.study.config import Study
from stratoscope.study.fits import Fit, fit_main, list_fits, load_fit, read_columns, surface_columns
from stratoscope.study.halves import fit_halves, half_curves, load_halves, split_groups
from stratoscope.study.resampling import resampled_curve
from stratoscope.study.stimuli import make_stimuli
from stratoscope.study.workspace import Workspace

STUDY = """
study: small
version: "1"
title: Small
about: One experiment.
reading: {sites: [resid_post]}
statistics: {folds: 3, permutations: 60, shuffles: 2, resamples: 100, splits: 2}
experiments:
  - name: one
    title: One
    question: What?
    control: None.
    texts: {design: rows, table: table.csv}
    group: kind
    targets: [{label: label}]
coordination: {of: [one], sites: [resid_post]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, synthetic_url: str) -> Run:
    texts = [f"thing {i} of {i % 24}" for i in range(96)]
    folder = tmp_path_factory.mktemp("fits") / "run"
    table = StimulusTable.from_frame(pl.DataFrame({"text": texts}))
    with Client(synthetic_url) as client:
        collect(table, folder, client, sites=["resid_post"], layers="all")
    return Run.open(folder)


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY, "study.yaml")


@pytest.fixture
def fit(run: Run, study: Study, tmp_path: Path) -> Fit:
    stimuli = run.stimuli().sample(fraction=1, shuffle=True, seed=1)
    rows = [f"{text},{text.split()[-1]},{int(text.split()[-1]) % 2}\n" for text in stimuli["text"]]
    (tmp_path / "table.csv").write_text("text,kind,label\n" + "".join(rows))
    (only,) = list_fits(study, make_stimuli(study, tmp_path))
    return only


def tick(_done: int, _total: int) -> None:
    pass


def test_columns_are_in_the_order_of_the_stimuli_asked_for_even_if_all_are(run: Run, fit: Fit) -> None:
    ids = fit.rows["stimulus_id"].to_list()
    assert sorted(ids) == sorted(run.stimuli()["id"])
    assert ids != run.stimuli()["id"].to_list()
    row_of = {name: row for row, name in enumerate(run.stimuli()["id"])}
    expected = run.activations()["resid_post", 3][[row_of[name] for name in ids]]
    assert np.array_equal(read_columns(run, ids)["resid_post", 3], expected)
    with pytest.raises(RunError, match="lacks 1 stimuli of the study, first 'gone'"):
        read_columns(run, [*ids, "gone"])


def test_chosen_rows_may_be_all_rows_in_another_order() -> None:
    values = {("s", 0): np.arange(6.0).reshape(3, 2)}
    assert ChosenColumns(values, np.array([2, 0, 1]), ("s",))["s", 0].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert ChosenColumns(values, np.array([0, 1, 2]), ("s",))["s", 0] is values["s", 0]


def test_the_main_curve_is_what_a_plain_script_gives(run: Run, study: Study, fit: Fit, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    columns = read_columns(run, fit.rows["stimulus_id"].to_list())
    fit_main(fit, columns, study, workspace, run.card.fingerprint, tick)
    result = load_fit(fit, "main", workspace)
    assert result is not None
    rows = result.predictions.filter(site="resid_post", layer=3, control="none")
    fold_of = dict(rows.select("stimulus_id", "fold").rows())
    cv = PredefinedSplit([fold_of[name] for name in fit.rows["stimulus_id"]])
    model = make_pipeline(StandardScaler(), SVC(kernel="linear", C=study.statistics.C))
    plain = cross_val_predict(model, columns["resid_post", 3].astype(np.float64), fit.rows["label"].to_numpy(), cv=cv)
    found = dict(rows.select("stimulus_id", "prediction").rows())
    assert [found[name] for name in fit.rows["stimulus_id"]] == plain.tolist()
    groups = dict(zip(fit.rows["stimulus_id"], fit.groups, strict=True))
    folds_of_group = pl.DataFrame([(groups[name], fold) for name, fold in fold_of.items()], orient="row")
    assert folds_of_group.group_by("column_0").agg(pl.col("column_1").n_unique())["column_1"].max() == 1
    assert load_fit(fit, "surface", workspace) is not None
    assert load_fit(fit, "nothing", workspace) is None


def test_surface_columns_fill_a_gap_with_the_mean(fit: Fit) -> None:
    gap = fit.rows.with_columns(n_words=pl.Series([None, *[4] * (fit.rows.height - 2), 10]))
    values = surface_columns(fit.with_rows(gap))["surface", None]
    assert values[0, 1] == pytest.approx(values[1:, 1].mean())
    assert np.isfinite(values).all()


def test_halves_share_no_group_and_make_up_the_whole(fit: Fit) -> None:
    for split in range(3):
        halves = split_groups(fit, split)
        a, b = (set(half["kind"].cast(pl.String)) for half in halves.values())
        assert not a & b
        assert a | b == set(fit.groups)
        assert abs(len(a) - len(b)) <= 1
    assert split_groups(fit, 0)["a"]["stimulus_id"].to_list() != split_groups(fit, 1)["a"]["stimulus_id"].to_list()


def test_curves_of_halves_are_those_of_their_own_fits(run: Run, study: Study, fit: Fit, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    columns = read_columns(run, fit.rows["stimulus_id"].to_list())
    fit_halves(fit, columns, study, workspace, run.card.fingerprint, tick)
    layers, curves = half_curves(fit, workspace, "resid_post", 2)
    assert layers.tolist() == list(range(12))
    assert curves.shape == (2, 2, 12)
    for split in range(2):
        for number, (half, result) in enumerate(load_halves(fit, workspace, split).items()):
            members = set(split_groups(fit, split)[half]["stimulus_id"])
            assert set(result.predictions["stimulus_id"]) == members
            whole = resampled_curve(result, "resid_post", "roc_auc", n_resamples=100, seed=0)
            assert whole.scores == pytest.approx(curves[split, number])


def test_resamples_are_the_same_for_targets_of_the_same_groups(
    run: Run, study: Study, fit: Fit, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "out")
    columns = read_columns(run, fit.rows["stimulus_id"].to_list())
    fit_main(fit, columns, study, workspace, run.card.fingerprint, tick)
    result = load_fit(fit, "main", workspace)
    assert result is not None
    one, again = (resampled_curve(result, "resid_post", "accuracy", n_resamples=200, seed=3) for _ in range(2))
    assert np.array_equal(one.draws, again.draws)
    other = resampled_curve(result, "resid_post", "accuracy", n_resamples=200, seed=4)
    assert not np.array_equal(one.draws, other.draws)
    assert np.abs(one.draws.mean(axis=0) - one.scores).max() < 0.05


def test_an_analysis_that_cannot_be_made_is_named(run: Run, fit: Fit, tmp_path: Path) -> None:
    columns = read_columns(run, fit.rows["stimulus_id"].to_list())
    many = parse_study(STUDY.replace("folds: 3", "folds: 30"), "study.yaml")
    with pytest.raises(DesignError, match=r"^one/label, main: .*Lower folds"):
        fit_main(fit, columns, many, Workspace(tmp_path / "out"), run.card.fingerprint, tick)
