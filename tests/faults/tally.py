"""What a fault did: how often it was injected, how often it was survived, and what it damaged."""

from dataclasses import asdict, astuple, dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a fault, or the sum of several.

    Attributes
    ----------
    injected
        Times that the fault happened.
    survived
        Of these, how often everything was as it must be afterwards.
    lost
        Stimuli that should be there and are not.
    doubled
        Stimuli that are there more than once.
    wrong
        Stimuli with a value, token or position other than the truth.
    hangs
        Times that something was still going on at its deadline.
    """

    injected: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    hangs: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def is_clean(self) -> bool:
        return self.injected == self.survived and not (self.lost or self.doubled or self.wrong or self.hangs)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def totals_line(self) -> str:
        return (
            f"faults injected {self.injected}, survived {self.survived}, items lost {self.lost}, "
            f"items doubled {self.doubled}, wrong values {self.wrong}, hangs {self.hangs}"
        )


def one(good: bool) -> Tally:
    """A fault that happened once."""
    return Tally(injected=1, survived=int(good))
