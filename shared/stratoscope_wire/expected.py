"""What was asked for, against which an answer is held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stratoscope_wire.compression import Compression
from stratoscope_wire.request import ActivationsRequest, Dtype
from stratoscope_wire.sites import Column


@dataclass(frozen=True, slots=True)
class Expected:
    """What was asked for, against which an answer is held.

    Attributes
    ----------
    stimulus_ids
        Every id, each to come back once.
    selectors
        Labels of the selectors, in the order of the request.
    columns
        Columns of the capture, in canonical order.
    dtype
        Type of the values on the wire.
    fingerprint
        Of the model that must answer.
    token_ids
        For stimuli sent as token ids, those ids.
    compression
        How every batch must be packed.
    """

    stimulus_ids: frozenset[str]
    selectors: tuple[str, ...]
    columns: tuple[Column, ...]
    dtype: Dtype
    fingerprint: str
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    compression: Compression | None = None

    @classmethod
    def of(cls, request: ActivationsRequest, columns: tuple[Column, ...], fingerprint: str) -> "Expected":
        """Derive the expectation from a request."""
        return cls(
            stimulus_ids=frozenset(stimulus.id for stimulus in request.stimuli),
            selectors=request.capture.labels,
            columns=columns,
            dtype=request.dtype,
            fingerprint=fingerprint,
            token_ids={s.id: s.token_ids for s in request.stimuli if s.token_ids is not None},
            compression=request.compression,
        )
