"""Tables as a study makes them, of made-up curves: every kind of experiment, verdict, gap and hostile name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from stratoscope.probes.peaks import PEAKS_SCHEMA, layer_ranges
from stratoscope.study.page import Book, Comparison

HOSTILE = "<script>alert('x')</script>"
SITES = ("resid_post", "attn_out", "mlp_out")
DISTANCES = (0, 10, 50, 200)

# name, level, where the curve is highest (relative depth), binary targets, graded targets
EXPERIMENTS: tuple[tuple[str, str, float, tuple[str, ...], tuple[str, ...]], ...] = (
    ("items", "item", 0.2, ("edible", "animate", "metal", "wearable", "natural", "toy"), ("size", "weight")),
    ("category", "item", 0.22, ("category",), ()),
    ("items/<b>bold</b>", "item", 0.25, ("a/b & <i>c</i>", "$x_{1$", HOSTILE), ()),
    ("pairs", "relation", 0.4, ("related",), ("relatedness",)),
    ("relations", "relation", 0.42, ("relation",), ()),
    ("analogy", "analogy", 0.5, ("valid",), ()),
    ("themes", "document", 0.75, ("theme", "tone"), ()),
    ("genres", "document", 0.7, ("genre",), ()),
    ("item far back", "context", 0.3, ("edible", "animate"), ()),
    ("pair far back", "context", 0.5, ("related",), ()),
    ("lists", "list", 0.6, ("edible", "metal"), ()),
    ("nothing", "control", 0.5, ("coin",), ()),
)

CURVE_TYPES: dict[str, Any] = {
    **dict.fromkeys(("experiment", "level", "target", "probe", "metric", "site", "test_probe"), pl.String),
    **dict.fromkeys(("distance", "place", "layer", "n_layers", "n_stimuli", "n_groups", "n_folds"), pl.Int32),
    **dict.fromkeys(("n_resamples", "n_shuffles", "n_permutations"), pl.Int32),
}
VERDICTS = ("found", "not found", "too short")


def curve_rows(
    name: str, level: str, target: str, probe: str, metric: str, *, n_layers: int, peak: float, height: float, **at: Any
) -> list[dict[str, Any]]:
    """Rows of one curve at every site and at the embedding, with the rise and fall of its peak."""
    rng = np.random.default_rng([ord(letter) for letter in f"{name}{target}{metric}{at}"])
    chance = {"r2": 0.0, "spearman": 0.0}.get(metric, 0.1 if target in ("category", "theme", "relation") else 0.5)
    depth = np.arange(n_layers) / (n_layers - 1)
    rows = []
    for rank, site in enumerate(SITES):
        shape = np.exp(-(((depth - peak) / 0.28) ** 2)) + 0.35 * np.exp(-(((depth - 0.8) / 0.1) ** 2))
        score = chance + (1 - chance) * height * (1 - 0.2 * rank) * shape + rng.normal(0, 0.012, n_layers)
        rows += [
            _row(float(min(score[layer], 1.0)), chance, site=site, layer=layer, relative_depth=depth[layer])
            for layer in range(n_layers)
        ]
    rows.append(_row(chance + 0.3 * height * (1 - chance), chance, site="embed", layer=None, relative_depth=None))
    if target == "metal":  # a layer where a fold had one class only
        rows[3].update(dict.fromkeys(("score", "se", "low", "high"), float("nan")))
    shared = {
        "experiment": name,
        "level": level,
        "target": target,
        "probe": probe,
        "metric": metric,
        "distance": None,
        "place": None,
        "n_layers": n_layers,
        "n_stimuli": 300,
        "n_groups": 150,
        "n_folds": 10,
        "n_resamples": 1000,
        "n_shuffles": 20,
        "n_permutations": 1000 if level != "list" else None,
        "text_score": chance + 0.05 if metric != "r2" else -0.08,
        "surface_score": chance + 0.02,
        "embed_score": rows[-1]["score"],
        "threshold": chance + 0.06,
        "null_mean": chance,
        "chance": chance,
        "test_probe": "ridge_classifier" if probe == "svm" else probe,
        **at,
    }
    return [{**shared, **row} for row in rows]


def _row(score: float, chance: float, **where: Any) -> dict[str, Any]:
    p = 0.001 if score > chance + 0.06 else 0.4
    around = {"score": score, "se": 0.02, "low": score - 0.04, "high": min(score + 0.04, 1.0)}
    shuffled = {"shuffled_mean": chance, "shuffled_low": chance - 0.05, "shuffled_high": chance + 0.05}
    return {**where, **around, **shuffled, "type_mean": None, "selectivity": score - chance, "p": p, "p_corrected": p}


def curves_of(n_layers: int = 30, scale: float = 1.0) -> pl.DataFrame:
    """Curves of all experiments."""
    rows: list[dict[str, Any]] = []
    for name, level, peak, binary, graded in EXPERIMENTS:
        height = 0.0 if name == "nothing" else scale * {"analogy": 0.35, "relation": 0.6}.get(level, 0.8)
        for at in _places(level):
            weaker = height * 0.7 ** DISTANCES.index(at.get("distance", 0)) * 0.9 ** (at.get("place", 1) - 1)
            shape: dict[str, Any] = {"n_layers": n_layers, "peak": peak, "height": weaker, **at}
            for target in binary:
                for metric in ("balanced_accuracy", "roc_auc"):
                    rows += curve_rows(name, level, target, "svm", metric, **shape)
            for target in graded:
                for metric in ("r2", "spearman"):
                    rows += curve_rows(name, level, target, "ridge", metric, **shape)
    schema = {key: CURVE_TYPES.get(key, pl.Float64) for key in rows[0]}
    return pl.DataFrame(rows, schema)


def _places(level: str) -> list[dict[str, int]]:
    if level == "context":
        return [{"distance": distance} for distance in DISTANCES]
    return [{"place": place} for place in range(1, 5)] if level == "list" else [{}]


def peaks_of(curves: pl.DataFrame) -> pl.DataFrame:
    """Peaks of curves, with a set and a plateau around each."""
    keys = ["experiment", "level", "distance", "place", "target", "probe", "metric", "site"]
    rows = []
    defined = curves.filter(pl.col("layer").is_not_null(), pl.col("score").is_finite())
    for part in defined.partition_by(keys, maintain_order=True):
        best = part.sort("score", descending=True).row(0, named=True)
        layers = part["layer"].to_list()
        around = [layer for layer in layers if abs(layer - best["layer"]) <= 2]
        far = [layer for layer in layers if abs(layer - best["layer"]) <= 3] + [layers[-1]]
        rows.append(
            {
                **{name: best[name] for name in (*keys, *PEAKS_SCHEMA) if name in best},
                "peak_layer": best["layer"],
                "peak_relative_depth": best["relative_depth"],
                "peak_set": layer_ranges(sorted(set(far)), layers),
                "peak_first": far[0],
                "peak_last": far[-1],
                "plateau": layer_ranges(around, layers),
                "plateau_first": around[0],
                "plateau_last": around[-1],
                "n_plateau": len(around),
                "onset_layer": 1,
                "onset_first": 0,
                "onset_last": 2,
            }
        )
    before = {"experiment": pl.String, "level": pl.String, "distance": pl.Int32, "place": pl.Int32}
    return pl.DataFrame(rows, {**before, **PEAKS_SCHEMA})


def tables_of(n_layers: int = 30) -> dict[str, pl.DataFrame]:
    """Every table of a study."""
    rng = np.random.default_rng(0)
    curves = curves_of(n_layers)
    targets = curves.filter(pl.col("distance").is_null(), pl.col("place").is_null())
    pairs = targets.select("experiment", "target").unique(maintain_order=True).rows()
    contrasts = [
        {
            "experiment": name,
            "target": target,
            "site": site,
            "peak1": "3-5",
            "trough": "9-12",
            "peak2": "18-20" if i % 3 < 2 else None,
            "fall": fall,
            "fall_low": fall - 0.05,
            "fall_p": 0.03,
            "rise": rise,
            "rise_low": None if i % 3 == 2 else rise - 0.06,
            "rise_p": float("nan"),
            "verdict": VERDICTS[(i + rank) % 3],
        }
        for i, (name, target) in enumerate(pairs)
        for rank, site in enumerate(SITES)
        for fall, rise in [rng.normal(0.04, 0.04, size=2).tolist()]
    ]
    coordination = [
        {
            "experiment": name,
            "target": target,
            "site": site,
            "reliability": rng.uniform(-0.1, 0.9),
            "reliability_p": 0.01,
            "lag1": rng.normal(-0.1, 0.2),
            "lag1_null_low": -0.33,
            "lag1_null_high": 0.25,
            "lag1_p": 0.2,
            "verdict": ("not found", "cannot be told", "found")[i % 3],
        }
        for i, (name, target) in enumerate(pairs[:12])
        for site in SITES
    ]
    tradeoff = [
        {
            "site": site,
            "target_a": "items · edible",
            "target_b": f"{name} · {target}",
            "correlation": rng.normal(0, 0.3),
            "null_low": -0.4,
            "null_high": 0.4,
            "p": 0.3,
            "verdict": "not found",
        }
        for name, target in pairs[8:12]
        for site in SITES
    ]
    order = [
        {"earlier": a, "later": b, "site": site, "difference": d, "low": d - 4.0, "high": d + 4.0, "verdict": verdict}
        for site in SITES
        for a, b, d, verdict in (
            ("items", "pairs", 6.0, "holds"),
            ("pairs", "analogy", 3.0, "cannot be told"),
            ("analogy", "themes", -7.0, "does not hold"),
        )
    ]
    return {
        "curves": curves,
        "peaks": peaks_of(curves),
        "tokens": _tokens(),
        "transfer": _transfer(n_layers),
        "heads": _heads(),
        "rise_fall_rise": pl.DataFrame(contrasts, infer_schema_length=None),
        "coordination": pl.DataFrame(coordination),
        "tradeoff": pl.DataFrame(tradeoff),
        "order": pl.DataFrame(order),
        "claims": claims_of(),
        "halves": pl.DataFrame({"experiment": ["items", "", None], "correlation": [0.5, None, float("nan")]}),
    }


def _tokens() -> pl.DataFrame:
    rows = [
        {
            "experiment": name,
            "distance": at.get("distance"),
            "n_stimuli": 300,
            "n_groups": 150,
            "tokens_min": 3,
            "tokens_mean": 5.25 + at.get("distance", 0),
            "tokens_max": 9 + at.get("distance", 0),
        }
        for name, level, *_ in EXPERIMENTS
        for at in (_places(level) if level == "context" else [{}])
    ]
    return pl.DataFrame(rows, schema_overrides={"distance": pl.Int32}, infer_schema_length=None)


def _transfer(n_layers: int) -> pl.DataFrame:
    layers = np.arange(n_layers)
    rows = [
        (name, target, site, i, j, 0.5 + 0.45 * float(np.exp(-abs(i - j) / 6)) * (0.3 + i / n_layers) - 0.02 * rank)
        for name, target in (("items", "edible"), ("pairs", "related"), ("items", "animate"))
        for rank, site in enumerate(SITES)
        for i in layers.tolist()
        for j in layers.tolist()
    ]
    names = ["experiment", "target", "site", "train_layer", "test_layer", "score"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    return table.with_columns(pl.when(train_layer=3, test_layer=4).then(None).otherwise("score").alias("score"))


def _heads() -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {
            "experiment": name,
            "target": target,
            "layer": layer,
            "head": head,
            "score": score,
            "low": score - 0.05,
            "high": score + 0.05,
            "p_corrected": 0.01 if score > 0.62 else 0.5,
        }
        for name, target in (("items", "edible"), ("pairs", "related"))
        for layer in (2, 5, 8, 12, 20)
        for head in range(9)
        for score in [float(rng.uniform(0.45, 0.7))]
    ]
    return pl.DataFrame(rows)


def claims_of() -> pl.DataFrame:
    """Claims with every verdict, one of them unheard of."""
    told: Sequence[tuple[str, str, str, str, str]] = (
        ("Items are read best early", "layers 2–7 of 28", "Items peak at layer 6 of 30 [4, 8].", "holds", "in time"),
        ("Relations follow items", "layers 8–12", "Relations peak 6 layers later [2, 10].", "holds", "it excludes 0"),
        ("Analogies follow", "layers 10–15", "Three layers later [−1, 7].", "cannot be told", "it includes 0"),
        ("Items fade in deep layers", "items and simple relations fade", "0.21 lower.", "holds", "it excludes 0"),
        ("Deep layers hold themes", "document-wide abstractions", "Before analogies.", "does not hold", "below 0"),
        ("Rise, fall and rise again", "in a model of 80 layers", HOSTILE, "too short", "fewer than 40 layers"),
    )
    names = ("claim", "paper", "measured", "verdict", "why")
    return pl.DataFrame([{"number": i, **dict(zip(names, one, strict=True))} for i, one in enumerate(told, 1)])


def book_of(tables: dict[str, pl.DataFrame] | None = None) -> Book:
    """Return the book of a whole study, or of some tables."""
    experiments = [
        {
            "name": name,
            "title": f"{name.capitalize()}: what is known of {level} {i}",
            "level": level,
            "question": f"Do the layers hold {', '.join(binary + graded)}? {HOSTILE}",
            "control": "Every word is as frequent in both classes, so that no single word gives the label away.",
            "targets": list(binary + graded),
        }
        for i, (name, level, _, binary, graded) in enumerate(EXPERIMENTS)
    ]
    return Book(
        title="A functional hierarchy? A reconstruction after Bogdan 2025",
        about="Twelve experiments on short texts, each with the control that makes its claim valid.",
        model="smollm2-135m",
        n_layers=30,
        tables=tables_of() if tables is None else tables,
        experiments=experiments,
        methods=["“edible”: a linear support vector machine, C = 1.", f"Folds are the same everywhere. {HOSTILE}"],
        provenance={"model": {"fingerprint": "3f9c", "path": HOSTILE}, "versions": {"stratoscope": "0.1.0"}},
    )


def comparison_of() -> Comparison:
    """Three models: of 30 layers, its random twin, and one of 80 layers."""
    depths = {"small": (30, 1.0), "random <twin>": (30, 0.0), "large": (80, 1.1)}
    curves = pl.concat(
        [
            curves_of(n_layers, scale).select(pl.lit(name).alias("model"), pl.all())
            for name, (n_layers, scale) in depths.items()
        ]
    )
    peaks = pl.concat(
        [
            peaks_of(part.drop("model")).select(pl.lit(part["model"][0]).alias("model"), pl.all())
            for part in curves.partition_by("model", maintain_order=True)
        ]
    )
    claims = pl.concat([claims_of().select(pl.lit(name).alias("model"), pl.all()) for name in ("small", "large")])
    baseline = [
        {
            "model": model,
            "experiment": name,
            "target": binary[0],
            "best_score": 0.9 - 0.35 * (scale == 0),
            "best_site": "resid_post",
            "best_layer": 5,
            "chance": 0.5,
            "text_score": 0.55,
            "p_corrected": 0.01,
            "p_discovery": 0.02,
            "verdict": "above its baselines" if scale else "at its baselines",
        }
        for model, (_, scale) in depths.items()
        for name, _, _, binary, _ in EXPERIMENTS
    ]
    depth = pl.DataFrame(
        [
            {
                "experiment": name,
                "site": "resid_post",
                "model_a": "small",
                "model_b": "large",
                "layers": 12.0,
                "layers_low": 8.0,
                "layers_high": 17.0,
                "depth": -0.11,
                "depth_low": -0.2,
                "depth_high": 0.02,
            }
            for name, *_ in EXPERIMENTS
        ]
    )
    return Comparison(
        title="Three models compared",
        about="The same study on three models.",
        models=[
            {"name": name, "model": f"org/{name}", "n_layers": n_layers, "fingerprint": "3f9c" * 16}
            for name, (n_layers, _) in depths.items()
        ],
        tables={"curves": curves, "peaks": peaks, "claims": claims, "baseline": pl.DataFrame(baseline), "depth": depth},
        methods=["All models saw the same texts."],
        provenance={"runs": [HOSTILE]},
    )
