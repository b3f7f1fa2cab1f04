"""Verdicts: each rule can say all three things, and says nothing of what cannot be read."""

from typing import Any

import polars as pl
import pytest

from stratoscope.study.asked import Claim
from stratoscope.study.claims import RULES
from stratoscope.study.compare import ABOVE, AT, baseline_table

CURVE: dict[str, Any] = {
    "experiment": "one", "level": "item", "target": "t", "part": None, "is_control": False, "distance": None,
    "metric": "balanced_accuracy", "site": "resid_post", "layer": 20, "relative_depth": 0.8, "score": 0.7, "low": 0.6,
    "high": 0.8, "chance": 0.5, "p_corrected": 0.01, "text_score": 0.5, "surface_score": 0.5,
}  # fmt: skip
SCHEMA = {
    "part": pl.String, "distance": pl.Int32, "p_corrected": pl.Float64, "text_score": pl.Float64,
    "surface_score": pl.Float64,
}  # fmt: skip


def curves(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([CURVE | row for row in rows], schema_overrides=SCHEMA)


def claim(rule: str, *experiments: str, **more: Any) -> Claim:
    return Claim(claim="c", paper="p", rule=rule, experiments=experiments, **more)


def decide(asked: Claim, **tables: pl.DataFrame) -> str:
    verdict, measured, why = RULES[asked.rule](asked, tables)
    assert measured
    assert why
    return verdict


def test_deep_holds_where_every_experiment_is_found_deep() -> None:
    both = curves({}, {"experiment": "two"})
    assert decide(claim("deep", "one", "two"), curves=both) == "holds"
    assert (
        decide(claim("deep", "one", "two"), curves=curves({}, {"experiment": "two", "p_corrected": 0.2}))
        == "cannot be told"
    )
    # Found, but in a layer that is not deep.
    shallow = curves({}, {"experiment": "two", "relative_depth": 0.3}, {"experiment": "two", "p_corrected": 0.5})
    assert decide(claim("deep", "one", "two"), curves=shallow) == "cannot be told"


def test_deep_does_not_hold_only_where_the_intervals_exclude_it() -> None:
    absent = {"p_corrected": 0.9, "score": 0.5, "low": 0.47, "high": 0.53}
    assert decide(claim("deep", "one"), curves=curves(absent)) == "does not hold"
    assert decide(claim("deep", "one"), curves=curves(absent, absent | {"layer": 21, "high": 0.56})) == "cannot be told"


def test_deep_corrects_for_the_number_of_targets() -> None:
    one = {"p_corrected": 0.03}
    assert decide(claim("deep", "one"), curves=curves(one)) == "holds"
    assert decide(claim("deep", "one"), curves=curves(one, {"target": "u", "p_corrected": 0.9})) == "cannot be told"
    # Simes: several targets that pass together speak for each other.
    assert decide(claim("deep", "one"), curves=curves(one, {"target": "u", "p_corrected": 0.04})) == "holds"


def test_controls_other_metrics_sites_and_short_distances_decide_nothing() -> None:
    silent = {"p_corrected": 0.9}
    for other in ({"is_control": True}, {"metric": "roc_auc"}, {"site": "attn_out"}):
        assert decide(claim("deep", "one"), curves=curves(silent, other)) == "cannot be told"
    near, far = {"distance": 10, "part": "10"}, {"distance": 200, "part": "200"}
    assert decide(claim("deep", "one", distance_from=50), curves=curves(near, far | silent)) == "cannot be told"
    assert decide(claim("deep", "one", distance_from=50), curves=curves(near | silent, far)) == "holds"


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "cannot be told"), "cannot be told"),
        (("cannot be told", "does not hold"), "does not hold"),
    ],
)
def test_an_order_of_three_needs_both_of_its_steps(verdicts: tuple[str, str], told: str) -> None:
    rows = [
        {"earlier": a, "later": b, "site": "resid_post", "difference": 3.0, "low": 1.0, "high": 5.0, "verdict": verdict}
        for (a, b), verdict in zip((("one", "two"), ("two", "three")), verdicts, strict=True)
    ]
    read = curves({}, {"experiment": "two"}, {"experiment": "three"})
    asked = claim("order", "one", "two", "three")
    assert decide(asked, curves=read, order=pl.DataFrame(rows)) == told
    mute = curves({}, {"experiment": "two", "p_corrected": 0.5}, {"experiment": "three"})
    assert decide(asked, curves=mute, order=pl.DataFrame(rows)) == "cannot be told"


def test_one_step_that_fails_refutes_an_order_even_where_another_cannot_be_told() -> None:
    row = {"site": "resid_post", "difference": -9.0, "low": -12.0, "high": -5.0, "verdict": "does not hold"}
    steps = [
        {"earlier": "one", "later": "two"} | row,
        {"earlier": "two", "later": "three"} | row | {"verdict": "holds"},
    ]
    asked, table = claim("order", "one", "two", "three"), pl.DataFrame(steps)
    third = curves({}, {"experiment": "two"}, {"experiment": "three", "p_corrected": 0.5})
    assert decide(asked, curves=third, order=table) == "does not hold"
    second = curves({}, {"experiment": "two", "p_corrected": 0.5}, {"experiment": "three"})
    assert decide(asked, curves=second, order=table) == "cannot be told"


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.02, 0.2, "holds"),
        (-0.02, 0.2, "cannot be told"),
        (-0.2, -0.02, "does not hold"),
        (0.0, 0.0, "does not hold"),  # the peak is where the deepest layers are
    ],
)
def test_fading_is_decided_by_the_interval_of_the_decline(low: float, high: float, told: str) -> None:
    row = {"experiment": "one", "site": "resid_post", "peak": "3-5", "deep": "28-29", "decline": 0.05}
    fades = pl.DataFrame([row | {"low": low, "high": high, "p": 0.5}])
    assert decide(claim("fades", "one"), curves=curves({}), fades=fades) == told
    assert decide(claim("fades", "one"), curves=curves({"p_corrected": 0.5}), fades=fades) == "cannot be told"


def dip(experiment: str, verdict: str, **more: Any) -> dict[str, Any]:
    row = {
        "experiment": experiment, "target": "t", "site": "resid_post", "peak1": "3-5", "trough": "9-11",
        "peak2": "15-17", "fall": 0.1, "fall_low": 0.05,
        "fall_high": 0.15, "fall_p": 0.01, "rise": 0.1, "rise_low": 0.05,
        "rise_high": 0.15, "rise_p": 0.01, "verdict": verdict,
    }  # fmt: skip
    return row | more


def test_a_dip_must_be_found_in_every_experiment_and_can_be_excluded() -> None:
    read = curves({}, {"experiment": "two"})
    asked = claim("rise_fall_rise", "one", "two")

    def verdict(*rows: dict[str, Any]) -> str:
        return decide(asked, curves=read, rise_fall_rise=pl.DataFrame(rows))

    assert verdict(dip("one", "found"), dip("two", "found")) == "holds"
    assert verdict(dip("one", "found"), dip("two", "not found", fall_p=0.2)) == "cannot be told"
    assert verdict(dip("one", "found"), dip("two", "not found", rise_high=0.01)) == "does not hold"
    none = dict.fromkeys(("peak1", "trough", "peak2", "fall", "fall_high", "rise", "rise_high"))
    assert verdict(dip("one", "found"), dip("two", "not found", **none)) == "does not hold"
    assert verdict(dip("one", "found"), dip("two", "too short", **none)) == "cannot be told"
    mute = curves({}, {"experiment": "two", "p_corrected": 0.5})
    both = pl.DataFrame([dip("one", "found"), dip("two", "found")])
    assert decide(asked, curves=mute, rise_fall_rise=both) == "cannot be told"


def test_coordination_is_that_of_all_targets_at_the_site() -> None:
    row = {
        "experiment": "all targets", "target": "all targets", "site": "attn_out", "reliability": 0.5,
        "reliability_p": 0.01, "lag1": -0.4, "lag1_null_low": -0.2,
        "lag1_null_high": 0.1, "lag1_p": 0.01, "verdict": "holds",
    }  # fmt: skip
    single = row | {"experiment": "one", "target": "t", "verdict": "does not hold"}
    asked = claim("coordination", "one", site="attn_out")
    assert decide(asked, coordination=pl.DataFrame([row, single])) == "holds"
    assert decide(asked, coordination=pl.DataFrame([row | {"site": "mlp_out"}])) == "cannot be told"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ABOVE),
        ({"p_corrected": 0.2}, AT),
        ({"p_corrected": None}, AT),
        ({"text_score": 0.65}, AT),
        ({"surface_score": 0.61}, AT),
        ({"low": 0.49}, AT),
        ({"text_score": None, "surface_score": None}, ABOVE),
    ],
)
def test_a_target_is_above_its_baselines_only_if_it_beats_every_one(change: dict[str, Any], told: str) -> None:
    frame = curves(change).select(pl.lit("m").alias("model"), pl.all())
    (row,) = baseline_table(frame).to_dicts()
    assert row["verdict"] == told


def test_baselines_are_corrected_for_the_targets_of_the_model_controls_apart() -> None:
    passing, failing = {"target": "a", "p_corrected": 0.02}, {"target": "b", "p_corrected": 0.9}
    control = {"target": "c", "is_control": True, "p_corrected": 0.04}

    def verdicts(*rows: dict[str, Any]) -> dict[str, str]:
        frame = curves(*rows).select(pl.lit("m").alias("model"), pl.all())
        return dict(baseline_table(frame).select("target", "verdict").rows())

    assert verdicts(passing, failing, control) == {"a": ABOVE, "b": AT, "c": ABOVE}
    assert verdicts(passing, failing, failing | {"target": "d"}) == {"a": AT, "b": AT, "d": AT}
    assert verdicts(*({"target": name, "p_corrected": 0.02} for name in "abcde")) == dict.fromkeys("abcde", ABOVE)
