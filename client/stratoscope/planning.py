"""What a collection will take, before it is begun."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stratoscope.captures import Layers, capture_columns, lossless_dtype, make_capture, row_bytes
from stratoscope.client import Client
from stratoscope.errors import TooLargeError
from stratoscope.packing import TARGET_BYTES, Recipe, halve, pack
from stratoscope.stimuli.table import StimulusTable
from stratoscope_wire import Selector
from stratoscope_wire.request import Dtype


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What a collection will take.

    Attributes
    ----------
    n_stimuli, n_tokens, n_rows, n_columns
        Counts; exact.
    dtype
        Type of the values on the wire: the smallest in which nothing is lost.
    wire_bytes
        Activations that will come over the network.
    disk_bytes
        The same as float32, before compression; files are about a third of it where the model computes in bfloat16.
    n_requests
        Requests it will take if all goes well.
    """

    n_stimuli: int
    n_tokens: int
    n_rows: int
    n_columns: int
    dtype: Dtype
    wire_bytes: int
    disk_bytes: int
    n_requests: int


def plan_collection(
    table: StimulusTable,
    client: Client,
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Layers = "all",
    select: Sequence[Selector | str] = ("last",),
    add_special_tokens: bool = True,
    request_bytes: int = TARGET_BYTES,
) -> CollectionPlan:
    """Ask the server what collecting a table would take; the model is not run.

    Parameters are those of `stratoscope.collect`.

    Raises
    ------
    StratoscopeError
        If the server would refuse a stimulus, or the capture.
    """
    card = client.model()
    capture = make_capture(sites, layers, select)
    recipe = Recipe(capture, capture_columns(capture, card), lossless_dtype(capture, card), add_special_tokens)
    waiting = deque(pack(table.stimuli, recipe, client.limits(), request_bytes))
    plans = []
    while waiting:
        request = waiting.popleft()
        try:
            plans.append(client.plan(request))
        except TooLargeError:
            halves = halve(request)
            if not halves:
                raise
            waiting.extendleft(reversed(halves))
    n_rows = sum(plan.n_rows for plan in plans)
    return CollectionPlan(
        n_stimuli=len(table),
        n_tokens=sum(plan.n_tokens for plan in plans),
        n_rows=n_rows,
        n_columns=len(recipe.columns),
        dtype=recipe.dtype,
        wire_bytes=sum(plan.bytes for plan in plans),
        disk_bytes=n_rows * row_bytes(recipe.columns, "float32"),
        n_requests=len(plans),
    )
