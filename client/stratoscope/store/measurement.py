"""What a run measures: the model and the capture. A run never mixes two of them."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from stratoscope.errors import CaptureChangedError, FingerprintChangedError
from stratoscope_wire import Capture, Column, ModelCard


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a run measures.

    Attributes
    ----------
    card
        The model.
    capture
        As it was asked for.
    columns
        What the capture gives on this model.
    add_special_tokens
        Whether texts are tokenised with the model's special tokens.
    """

    card: ModelCard
    capture: Capture
    columns: tuple[Column, ...]
    add_special_tokens: bool

    @property
    def facts(self) -> dict[str, Any]:
        """The capture, resolved: two captures with equal facts give the same rows."""
        return {
            "columns": [column.name for column in self.columns],
            "select": list(self.capture.labels),
            "add_special_tokens": self.add_special_tokens,
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a shard, before compression."""
        return 4 * sum(column.width for column in self.columns)

    def capture_json(self) -> str:
        """Return the capture as JSON."""
        return json.dumps({"capture": self.capture.model_dump(mode="json"), **self.facts})

    def columns_json(self) -> str:
        """Return the columns as JSON."""
        return json.dumps([asdict(column) for column in self.columns])

    @classmethod
    def from_json(cls, card: str, capture: str, columns: str) -> "Measurement":
        """Rebuild a measurement from a ledger."""
        recorded = json.loads(capture)
        return cls(
            ModelCard.model_validate_json(card),
            Capture.model_validate(recorded["capture"]),
            tuple(Column(**column) for column in json.loads(columns)),
            recorded["add_special_tokens"],
        )

    def check_same(self, wanted: "Measurement", run_dir: object) -> None:
        """Refuse to go on with another model or capture.

        Raises
        ------
        FingerprintChangedError, CaptureChangedError
            With what the run holds and what is wanted.
        """
        if self.card.fingerprint != wanted.card.fingerprint:
            raise FingerprintChangedError(
                f"the run {run_dir} was collected from another model than the one that answers now: "
                f"fingerprint {self.card.fingerprint} in the run, {wanted.card.fingerprint} from the server; they "
                f"differ in {_difference(self.card.model_dump(), wanted.card.model_dump())}. Use another run folder, "
                "or the server the run was begun with"
            )
        if self.facts != wanted.facts:
            raise CaptureChangedError(
                f"the run {run_dir} holds another capture than the one asked for; they differ in "
                f"{_difference(self.facts, wanted.facts)}. Use another run folder"
            )


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in held if held[name] != wanted[name] and name != "fingerprint"]
    return "; ".join(f"{name}: {_shown(held[name])} in the run, {_shown(wanted[name])} now" for name in names)


def _shown(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 300 else f"{text[:300]}..."
