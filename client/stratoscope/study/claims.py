"""The paper's claims, decided for the model at hand: each by one stated rule, from numbers that stand in other tables.

A claim *holds* or *does not hold* only where the rule's test says so; wherever what it is about cannot be read from the
model at all, or the test has no power to decide, it *cannot be told*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl
from scipy.stats import false_discovery_control

from stratoscope.study.asked import Claim
from stratoscope.study.config import Study
from stratoscope.study.questions import ALL_TARGETS, ALPHA

Tables = Mapping[str, pl.DataFrame]
Decision = tuple[str, str, str]
"""Verdict, what was measured, and why that decides."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
MAIN_METRICS = ("balanced_accuracy", "r2")
DEEP = 2 / 3
"""Relative depth from which a layer counts as deep."""
SMALL = 0.05
"""Excess over chance below which a score counts as none, where its interval excludes more."""
NO_DIP = 0.02
"""Depth of a dip, in the metric of the curve, below which it counts as none, where its interval excludes more."""

CLAIMS_SCHEMA = pl.Schema(
    {"number": pl.Int32, **dict.fromkeys(("claim", "paper", "measured", "verdict", "rule", "why"), pl.String)}
)


def claims_table(study: Study, tables: Tables) -> pl.DataFrame:
    """Decide every claim of a study.

    Parameters
    ----------
    study
    tables
        ``curves, order, fades, rise_fall_rise, coordination`` of the same study.
    """
    rows = []
    for number, claim in enumerate(study.claims, start=1):
        verdict, measured, why = RULES[claim.rule](claim, tables)
        rows.append(
            {"number": number, "claim": claim.claim.strip(), "paper": claim.paper.strip(), "measured": measured,
             "verdict": verdict, "rule": claim.rule, "why": why}
        )  # fmt: skip
    return pl.DataFrame(rows, CLAIMS_SCHEMA)


def readable(claim: Claim, tables: Tables, *, from_depth: float = 0.0) -> dict[str, bool]:
    """Say of every experiment of a claim whether it can be read at the claim's site, in layers from a depth on.

    It can if some target passes: the least corrected p of each target's layers, combined over targets by Simes' test
    (Simes 1986, *Biometrika* 73), since p is corrected for layers and sites and not for targets.
    """
    curves = _main_curves(claim, tables, from_depth)
    best = curves.group_by("experiment", "target", "part").agg(pl.col("p_corrected").min())
    p_of = {name: rows["p_corrected"] for (name,), rows in best.group_by("experiment")}
    return {name: name in p_of and simes(p_of[name].to_list()) <= ALPHA for name in claim.experiments}


def simes(p: Sequence[float | None]) -> float:
    """Combine p-values of targets into one of "there is something in some of them"; an absent one counts as 1."""
    return float(false_discovery_control([1.0 if one is None else one for one in p], method="bh").min())


def _main_curves(claim: Claim, tables: Tables, from_depth: float) -> pl.DataFrame:
    return tables["curves"].filter(
        pl.col("experiment").is_in(claim.experiments),
        pl.col("site") == claim.site, ~pl.col("is_control"), pl.col("relative_depth") >= from_depth,
        pl.col("metric").is_in(MAIN_METRICS),
        pl.col("distance").is_null() | (pl.col("distance") >= claim.distance_from),
    )  # fmt: skip


def _order(claim: Claim, tables: Tables) -> Decision:
    rows = tables["order"].filter(site=claim.site).to_dicts()
    pairs = list(pairwise(claim.experiments))
    chosen = [row for row in rows if (row["earlier"], row["later"]) in pairs]
    measured = "; ".join(
        f"{row['later']} peaks {row['difference']:+.0f} layers after {row['earlier']} [{row['low']:+.0f}, "
        f"{row['high']:+.0f}]"
        for row in chosen
    )
    can = readable(claim, tables)
    silent = [name for name in claim.experiments if not can[name]]
    why = "holds if every 95 % interval is above 0 layers; does not hold if one is below 1"
    if any(row["verdict"] == FAILS and can[row["earlier"]] and can[row["later"]] for row in chosen):
        return FAILS, measured, why
    if silent:
        return OPEN, measured, f"{', '.join(silent)} cannot be read at {claim.site}, so that its peak means nothing"
    return (HOLDS if all(row["verdict"] == HOLDS for row in chosen) else OPEN), measured, why


def _fades(claim: Claim, tables: Tables) -> Decision:
    rows = (
        tables["fades"].filter(pl.col("site") == claim.site, pl.col("experiment").is_in(claim.experiments)).to_dicts()
    )
    measured = "; ".join(
        f"{row['experiment']}: {row['decline']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] from layers "
        f"{row['peak']} to {row['deep']}"
        for row in rows
    )
    silent = [name for name, can in readable(claim, tables).items() if not can]
    if silent:
        return OPEN, measured, f"{', '.join(silent)} cannot be read at {claim.site}, so that nothing can fade"
    why = (
        "peak found on one half of the groups, decline tested on the other; holds if every 95 % interval is above 0, "
        "does not hold if one is above 0 nowhere, as where the peak is among the deepest layers"
    )
    if all(row["low"] > 0 for row in rows):
        return HOLDS, measured, why
    return (FAILS if any(row["high"] <= 0 for row in rows) else OPEN), measured, why


def _deep(claim: Claim, tables: Tables) -> Decision:
    deep = readable(claim, tables, from_depth=DEEP)
    curves = _main_curves(claim, tables, DEEP)
    excess = dict(curves.group_by("experiment").agg((pl.col("high") - pl.col("chance")).max()).iter_rows())
    best = curves.sort("score", descending=True, nulls_last=True).unique(
        "experiment", keep="first", maintain_order=True
    )
    measured = "; ".join(
        f"{row['experiment']}: {row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}] at layer {row['layer']} "
        f"({row['target']}{'' if row['part'] is None else ' at ' + row['part']}), chance {row['chance']:.2f}"
        for row in best.to_dicts()
    )
    why = (
        "best score in the deepest third; holds if the permutation test, corrected for layers, sites and "
        "targets, finds "
        f"every experiment there; does not hold if one's intervals all end below chance + {SMALL}"
    )
    absent = [name for name, can in deep.items() if not can and excess.get(name, SMALL) < SMALL]
    return (HOLDS if all(deep.values()) else FAILS if absent else OPEN), measured, why


def _rise_fall(claim: Claim, tables: Tables) -> Decision:
    rows = tables["rise_fall_rise"].filter(
        pl.col("site") == claim.site, pl.col("experiment").is_in(claim.experiments)
    ).to_dicts()  # fmt: skip
    measured = "; ".join(f"{row['experiment']}/{row['target']}: {_dip(row)}" for row in rows)
    silent = [name for name, can in readable(claim, tables).items() if not can]
    if silent:
        return OPEN, measured, f"{', '.join(silent)} cannot be read at {claim.site}, so that there is no curve to dip"
    why = (
        "windows found on one half of the groups, both contrasts tested on the other; holds if found in all experiments"
    )
    found = {name: any(r["verdict"] == "found" for r in rows if r["experiment"] == name) for name in claim.experiments}
    if all(found.values()):
        return HOLDS, measured, why
    why += f"; does not hold if the curves of one show no dip at all, or their intervals exclude one of {NO_DIP}"
    flat = {n: all(_is_flat(r) for r in rows if r["experiment"] == n) for n in claim.experiments if not found[n]}
    return (FAILS if any(flat.values()) and rows else OPEN), measured, why


def _is_flat(row: Mapping[str, Any]) -> bool:
    if row["fall"] is None:
        return bool(row["verdict"] == "not found")
    return bool(min(row["fall_high"], row["rise_high"]) < NO_DIP)


def _dip(row: Mapping[str, Any]) -> str:
    if row["fall"] is None:
        return f"no dip ({row['verdict']})"
    return (
        f"{row['verdict']}; layers {row['peak1']} over {row['trough']} by {row['fall']:+.3f} (p {row['fall_p']:.3f}), "
        f"{row['peak2']} by {row['rise']:+.3f} (p {row['rise_p']:.3f})"
    )


def _coordination(claim: Claim, tables: Tables) -> Decision:
    rows = tables["coordination"].filter(pl.col("site") == claim.site, pl.col("target") == ALL_TARGETS).to_dicts()
    if not rows:
        return OPEN, "not measured: too few layers", "the trend of a curve needs more layers than its span"
    row = rows[0]
    measured = (
        f"reliability between halves {row['reliability']:.2f} (p {row['reliability_p']:.3f}); lag-1 correlation "
        f"{row['lag1']:+.2f}, null [{row['lag1_null_low']:+.2f}, {row['lag1_null_high']:+.2f}] (p {row['lag1_p']:.3f})"
    )
    why = "cannot be told without reliable deviations from the trend; holds if lag-1 is below the null (p at most 0.05)"
    return row["verdict"], measured, why


RULES = {
    "order": _order,
    "fades": _fades,
    "deep": _deep,
    "rise_fall_rise": _rise_fall,
    "coordination": _coordination,
}
