"""Collecting a study: every capture into a run of its own, whatever is already there left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import polars as pl

from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import RunNotFoundError
from stratoscope.stimuli.table import StimulusTable
from stratoscope.store.run import Run
from stratoscope.study.captures import Capture
from stratoscope.study.workspace import Workspace

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Makes a progress bar for what it is told; the bar is given what is done and what there is."""


def collect_captures(
    captures: Iterable[Capture], workspace: Workspace, client: Client | Sequence[Client], bar: Bar
) -> None:
    """Collect every capture; the same call goes on with an interrupted one.

    Raises
    ------
    StratoscopeError
        See `stratoscope.collect`.
    """
    for capture in captures:
        with bar(f"collecting {', '.join(capture.sites)}") as tick:
            collect(
                _with_committed(capture, workspace),
                workspace.run(capture.name),
                client,
                **capture.arguments,
                progress=lambda counts, tick=tick: tick(counts.already_there + counts.fetched, counts.total),  # type: ignore[misc]
            )


def _with_committed(capture: Capture, workspace: Workspace) -> StimulusTable:
    """Add what a former version of the study has collected: a run gives nothing up."""
    try:
        there = Run.open(workspace.run(capture.name), allow_incomplete=True).stimuli()
    except RunNotFoundError:
        return capture.table
    if capture.texts.width > 2:  # with spans, which a run does not give back; the ids are of the content
        return capture.table
    former = there.select("id", "text").join(capture.texts.select("id"), on="id", how="anti")
    return StimulusTable.from_frame(pl.concat([capture.texts, former]), f"capture {capture.name}")
