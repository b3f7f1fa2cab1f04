"""The built-in study against models whose truth is known: what is planted is found, and nothing else is claimed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest

from stratoscope.errors import RunError
from stratoscope.study.catalogue import read_study
from stratoscope.study.compare import ABOVE, compare_studies
from stratoscope.study.config import Study
from stratoscope.study.fits import Fit
from stratoscope.study.questions import ALL_TARGETS
from stratoscope_server.engines.plants import Plants

N_LAYERS = 24
PEAKS = {"item": 5, "relation": 11, "analogy": 16, "document": 20, "list": 13, "item-far": 19, "relation-far": 18}
MAIN = pl.col("metric").is_in(["balanced_accuracy", "r2"])

Gains = Mapping[str, list[float]]
Hump = Callable[..., list[float]]


@pytest.fixture(scope="module")
def study() -> Study:
    """The built-in study on every layer of two sites, with probes that are quick where nothing is to be found."""
    quick, _ = read_study("hierarchy", profile="quick")
    whole, _ = read_study("hierarchy")
    content = quick.model_dump(exclude_unset=True)
    content["reading"] |= {"layers": "all", "sites": ("resid_post", "attn_out")}
    content["statistics"] |= {"classes": "ridge_classifier", "splits": 2}
    assert whole.coordination is not None
    content["coordination"] = whole.coordination.model_dump() | {
        "of": ("item/living", "relation/related", "analogy/valid", "document/coherent"),
        "sites": ("attn_out", "resid_post"),
    }
    content["claims"] = [claim.model_dump() for claim in whole.claims]
    content["transfer"] = {"of": ("document/coherent",)}
    content["rise_fall_rise"]["sites"] = ("resid_post",)
    content["heads"] = None
    return Study.model_validate(content)


def in_turn(gains: list[float]) -> list[float]:
    """Every second layer has most of it."""
    return [gain * (1.0 if layer % 2 else 0.35) for layer, gain in enumerate(gains)]


@pytest.fixture(scope="module")
def hierarchy(study: Study, plant_study: Callable[..., Plants], run_planted: Callable[..., Path], hump_at: Hump,
              tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    """A model with one hump per experiment, in the paper's order, whose attention outputs take turns."""

    def gains(fit: Fit) -> Gains:
        peak = PEAKS[fit.experiment.name]
        return {
            "resid_post": hump_at(N_LAYERS, peak),
            "attn_out": in_turn(hump_at(N_LAYERS, 12, width=9, height=0.2)),
        }

    return run_planted(study, plant_study(study, gains, N_LAYERS), tmp_path_factory.mktemp("planted") / "hierarchy")


@pytest.fixture(scope="module")
def dipping(study: Study, plant_study: Callable[..., Plants], run_planted: Callable[..., Path], hump_at: Hump,
            tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    """A model whose relations and analogies rise, fall and rise again, and whose layers take no turns."""

    def gains(fit: Fit) -> Gains:
        if fit.experiment.name in ("relation", "analogy"):
            two = zip(hump_at(N_LAYERS, 5, height=0.3), hump_at(N_LAYERS, 18, height=0.25), strict=True)
            return {"resid_post": [a + b for a, b in two], "attn_out": hump_at(N_LAYERS, 12, width=9, height=0.2)}
        return {"resid_post": hump_at(N_LAYERS, 12), "attn_out": hump_at(N_LAYERS, 12, width=9, height=0.2)}

    return run_planted(study, plant_study(study, gains, N_LAYERS), tmp_path_factory.mktemp("planted") / "dipping")


@pytest.fixture(scope="module")
def empty(study: Study, run_planted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that holds nothing of what is asked."""
    return run_planted(study, Plants(n_layers=N_LAYERS), tmp_path_factory.mktemp("planted") / "empty")


def table(out: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(out / "tables" / f"{name}.parquet")


def verdicts(out: Path) -> dict[str, list[str]]:
    rows = table(out, "claims")
    return {rule: rows.filter(rule=rule)["verdict"].to_list() for rule in rows["rule"].unique()}


def test_every_analysis_peaks_where_it_was_planted(hierarchy: Path) -> None:
    peaks = table(hierarchy, "peaks").filter(MAIN, pl.col("site") == "resid_post")
    assert set(peaks["experiment"]) == set(PEAKS)
    for row in peaks.filter(pl.col("distance").is_null() | (pl.col("distance") > 0)).to_dicts():
        planted = PEAKS[row["experiment"]]
        assert abs(row["peak_layer"] - planted) <= 2, row
        assert row["peak_first"] <= planted <= row["peak_last"], row
        assert row["p_corrected"] <= 0.05, row


def test_the_papers_claims_hold_where_they_were_planted(hierarchy: Path) -> None:
    found = verdicts(hierarchy)
    assert found["order"] == ["holds"]
    assert found["fades"] == ["holds"]
    assert found["deep"] == ["holds", "holds"]
    assert found["rise_fall_rise"] == ["does not hold"]
    assert found["coordination"] == ["holds"]


def test_turns_are_found_at_the_site_that_has_them_alone(hierarchy: Path, dipping: Path) -> None:
    turns = table(hierarchy, "coordination").filter(target=ALL_TARGETS)
    assert turns.filter(site="attn_out")["verdict"].to_list() == ["holds"]
    assert turns.filter(site="resid_post")["verdict"].to_list() != ["holds"]
    assert set(table(dipping, "coordination").filter(target=ALL_TARGETS)["verdict"]) <= {
        "does not hold",
        "cannot be told",
    }


def test_rise_fall_and_rise_are_found_where_planted_and_not_where_not(hierarchy: Path, dipping: Path) -> None:
    assert verdicts(dipping)["rise_fall_rise"] == ["holds"]
    found = table(dipping, "rise_fall_rise").filter(site="resid_post")
    assert set(found["verdict"]) == {"found"}
    for row in found.to_dicts():
        first, trough, last = (sum(map(int, row[name].split("-"))) / 2 for name in ("peak1", "trough", "peak2"))
        assert (abs(first - 5) <= 2, abs(trough - 11) <= 3, abs(last - 18) <= 2) == (True, True, True), row
    single = table(hierarchy, "rise_fall_rise").filter(site="resid_post")
    assert single.height == 2
    assert "found" not in set(single["verdict"])


def test_the_order_of_peaks_is_not_claimed_where_it_was_not_planted(dipping: Path) -> None:
    assert verdicts(dipping)["order"] != ["holds"]


def test_nothing_is_claimed_of_a_model_that_holds_nothing(empty: Path) -> None:
    claims = table(empty, "claims")
    assert claims.height == 6
    assert set(claims["verdict"]) == {"cannot be told"}
    assert set(table(empty, "tradeoff")["verdict"]) == {"not found"}
    assert "found" not in set(table(empty, "rise_fall_rise")["verdict"])
    curves = table(empty, "curves").filter(MAIN, pl.col("layer").is_not_null())
    passed = curves.group_by("experiment", "target", "distance").agg(pl.col("p_corrected").min())
    assert passed.height == 11
    assert (passed["p_corrected"] <= 0.05).sum() <= 3  # more in one of 600 such models


def test_the_report_shows_what_the_tables_say(hierarchy: Path) -> None:
    page = (hierarchy / "report.html").read_text("utf-8")
    for claim in table(hierarchy, "claims").to_dicts():
        assert claim["claim"] in page
    assert "a reconstruction after Bogdan 2025" in page
    for name in (
        "claims",
        "curves",
        "peaks",
        "order",
        "fades",
        "rise_fall_rise",
        "coordination",
        "tradeoff",
        "transfer",
    ):
        read = pl.read_csv(hierarchy / "tables" / f"{name}.csv", infer_schema_length=None)
        assert read.height == table(hierarchy, name).height > 0


def test_models_are_compared_by_peaks_and_by_baselines(
    hierarchy: Path, dipping: Path, empty: Path, tmp_path: Path
) -> None:
    page = compare_studies([hierarchy, dipping, empty], tmp_path / "compared").read_text("utf-8")
    names = [f"synthetic ({path.name})" for path in (hierarchy, dipping, empty)]
    assert all(name in page for name in names)
    depth = table(tmp_path / "compared", "depth").filter(experiment="item", model_a=names[0], model_b=names[1])
    (item,) = depth.to_dicts()
    assert item["layers_low"] <= 12 - PEAKS["item"] <= item["layers_high"]
    assert item["layers_low"] > 0
    assert item["depth"] == pytest.approx(item["layers"] / (N_LAYERS - 1))
    baseline = table(tmp_path / "compared", "baseline").filter(~pl.col("is_control"))
    above = {name: rows.filter(verdict=ABOVE).height for (name,), rows in baseline.group_by("model")}
    n_targets = baseline.filter(model=names[0]).height
    assert above[names[2]] == 0
    assert above[names[0]] >= n_targets - 1
    assert f"{names[2]}: 0 of {n_targets} targets are above their baselines; it is at its baselines throughout" in page


def test_runs_of_one_model_or_of_other_texts_are_not_compared(hierarchy: Path, dipping: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(hierarchy, copy)
    with pytest.raises(RunError, match="are of one model"):
        compare_studies([hierarchy, copy], tmp_path / "out")
    frame = pl.read_parquet(copy / "stimuli" / "item.parquet")
    frame.head(20).write_parquet(copy / "stimuli" / "item.parquet")
    with pytest.raises(RunError, match="different texts in experiment item"):
        compare_studies([dipping, copy], tmp_path / "out")
    with pytest.raises(RunError, match="two runs or more"):
        compare_studies([hierarchy], tmp_path / "out")
    assert not (tmp_path / "out").exists()
