"""From words to arguments and from results to words: what the commands read and print."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from stratoscope.collection import Progress
from stratoscope.experiments import EXPERIMENTS, load_experiment
from stratoscope.planning import CollectionPlan
from stratoscope.stimuli import StimulusTable, load_stimuli
from stratoscope.store.repair import DAMAGED, Verdict
from stratoscope_wire import Limits, ModelCard

if TYPE_CHECKING:
    from stratoscope.study.config import Study
    from stratoscope.study.planning import StudyPlan

MAIN_METRICS: Final = {"balanced_accuracy": "balanced accuracy", "r2": "R2"}
"""The metric that is shown for each kind of probe."""


def read_stimuli(word: str) -> StimulusTable:
    """Load a stimulus file, or a built-in experiment by its name."""
    # A stimulus file has a suffix, so no file can be mistaken for an experiment.
    names_of_experiments = [experiment.name for experiment in EXPERIMENTS]
    return load_experiment(word) if word in names_of_experiments else load_stimuli(word)


def names(word: str) -> list[str]:
    """Split a list separated by commas."""
    return [part.strip() for part in word.split(",") if part.strip()]


def layers(word: str) -> str | list[int]:
    """Read ``all``, a slice, or numbers separated by commas; anything else is left for the check of the capture."""
    parts = names(word)
    if all(part.removeprefix("-").isdigit() for part in parts):
        return [int(part) for part in parts]
    return word


def collected(counts: Progress, out: str | Path) -> str:
    """Say what a collection brought."""
    lines = [
        f"{out}: {counts.already_there + counts.committed} of {counts.total} stimuli "
        f"({counts.already_there} were there, {counts.committed} fetched in {counts.requests} requests, "
        f"{counts.shards} shards, {size(counts.bytes)})"
    ]
    if counts.failed:
        lines.append(f"{counts.failed} stimuli were refused by the server and are not in the run")
    return "\n".join(lines)


def verified(verdict: Verdict, run: str, *, repaired: bool) -> str:
    """Say what was found in a run, shard by shard."""
    head = f"{run}: {verdict.n_committed} of {verdict.n_stimuli} stimuli in {verdict.n_shards} shards"
    if not verdict.damages:
        return f"{head}, all whole"
    lines = [head]
    lines += [f"{damage.fault}; its stimuli: {', '.join(damage.stimulus_ids)}" for damage in verdict.damages]
    n_stimuli = sum(len(damage.stimulus_ids) for damage in verdict.damages)
    if repaired:
        lines.append(
            f"repaired: what was left of {len(verdict.damages)} shards is in {Path(run) / 'shards' / DAMAGED}, and "
            f"{n_stimuli} stimuli are missing again; the collect command that made the run now fetches only these"
        )
    else:
        lines.append(f"`stratoscope verify {run} --repair` sets these {n_stimuli} stimuli back to be fetched again")
    return "\n".join(lines)


def planned(cost: CollectionPlan) -> str:
    """Say what a collection would cost."""
    rows = [
        ("stimuli", f"{cost.n_stimuli:,}"),
        ("tokens", f"{cost.n_tokens:,}"),
        ("rows", f"{cost.n_rows:,}"),
        ("columns", f"{cost.n_columns:,}"),
        ("requests", f"{cost.n_requests:,}"),
        ("on the wire", f"{size(cost.wire_bytes)} ({cost.wire_bytes:,} bytes of {cost.dtype})"),
        ("on disk", f"at most {size(cost.disk_bytes)} before compression"),
    ]
    return "\n".join(f"{name:12} {value}" for name, value in rows)


def model_card(card: ModelCard, limits: Limits) -> str:
    """Show a model card and the server's limits."""
    facts = [
        ("model", f"{card.model} ({card.revision})"),
        ("architecture", f"{card.architecture}, {card.dtype}, by engine {card.engine}"),
        ("shape", f"{card.n_layers} layers, d_model {card.d_model}, {card.n_heads} heads of {card.d_head}"),
        ("sites", ", ".join(site.site for site in card.sites)),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ("fingerprint", card.fingerprint),
        *((name.replace("_", " "), "none" if value is None else f"{value:,}") for name, value in limits),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts)


def peaks_table(peaks: pl.DataFrame) -> str:
    """Show peak layers and scores, one line per target and site, for each target's main metric.

    Parameters
    ----------
    peaks
        As of `stratoscope.probes.summarise`; a column ``experiment`` is put before the target. ``p`` is corrected for
        the choice among all layers and sites, and empty without permutations.
    """
    rows = peaks.filter(pl.col("metric").is_in(list(MAIN_METRICS))).to_dicts()
    names = [" ".join(filter(None, (row.get("experiment"), row["target"]))) for row in rows]
    width = max(len(name) for name in [*names, "target"])
    sets = max(len(row["peak_set"]) for row in rows) if rows else 0
    sets = max(sets, len("of 95% set"))
    head = (
        f"{'target':{width}}  {'site':10}  peak layer  {'of 95% set':{sets}}  {'score':23}  {'95% interval':16}  "
        "shuffled    text       p"
    )
    lines = [head, "-" * len(head)]
    for name, row in zip(names, rows, strict=True):
        text = "" if row["text_score"] is None else f"{row['text_score']:.3f}"
        p = "" if row["p_corrected"] is None else f"{row['p_corrected']:.3f}"
        score = f"{row['score']:.3f} {MAIN_METRICS[row['metric']]}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"{name:{width}}  {row['site']:10}  {row['peak_layer']:>10}  {row['peak_set']:{sets}}  {score:23}  "
            f"{interval:16}  {row['shuffled_mean']:>8.3f}  {text:>6}  {p:>6}".rstrip()
        )
    return "\n".join(lines)


def shown_study(study: "Study", stimuli: Mapping[str, pl.DataFrame]) -> str:
    """Show the experiments of a study, with examples of their texts."""
    lines = [f"{study.study} {study.version}: {study.title}", "", study.about.strip()]
    for experiment in study.experiments:
        frame = stimuli[experiment.name]
        targets = ", ".join(target.title + (" (control)" if target.control else "") for target in experiment.targets)
        groups = frame[experiment.group].n_unique()
        lines += [
            "",
            f"{experiment.name} [{experiment.level}]: {frame.height} texts in {groups} groups",
            f"  asks      {experiment.question.strip()}",
            f"  control   {experiment.control.strip()}",
            f"  targets   {targets}",
            *(f"  text      {shortened(text)}" for text in frame["text"][:2]),
        ]
    return "\n".join(lines)


def planned_study(plan: "StudyPlan") -> str:
    """Say what a study would take."""
    from stratoscope.probes.cost import duration  # brings scikit-learn, which most commands do without

    width = max(len(one.name) for one in plan.experiments)
    head = f"{'experiment':{width}}  stimuli  groups  analyses        fits       time"
    lines = [head, "-" * len(head)]
    lines += [
        f"{one.name:{width}}  {one.n_stimuli:>7,}  {one.n_groups:>6,}  {one.n_analyses:>8}  {one.n_fits:>10,}  "
        f"{duration(one.fit_seconds):>9}"
        for one in plan.experiments
    ]
    n_bytes = sum(one.wire_bytes for one in plan.collections)
    on_disk = sum(one.disk_bytes for one in plan.collections)
    seconds = plan.collect_seconds
    lines += [
        "",
        f"collect   {sum(one.n_stimuli for one in plan.collections):,} texts, {plan.n_tokens:,} tokens, "
        f"{size(n_bytes)} on the wire, at most {size(on_disk)} on disk",
        "          "
        + (
            "not rehearsed"
            if seconds is None
            else f"about {duration(seconds)} at the speed of a few of them, just read"
        ),
        f"fit       {sum(one.n_fits for one in plan.experiments):,} fits, about {duration(plan.fit_seconds)} on "
        "this machine",
    ]
    return "\n".join(lines)


def told_claims(claims: pl.DataFrame) -> str:
    """Say what became of every claim."""
    if claims.is_empty():
        return "the study makes no claims"
    width = max(len(verdict) for verdict in claims["verdict"])
    return "\n".join(f"{row['verdict']:{width}}  {row['claim']}" for row in claims.iter_rows(named=True))


def shortened(text: str, most: int = 100) -> str:
    """Cut a text for one line."""
    return text if len(text) <= most else f"{text[:most].rstrip()} …"


def size(n_bytes: int) -> str:
    """Write a number of bytes for a person."""
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
