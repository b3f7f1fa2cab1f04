"""What is run: texts, and the ways of running them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SITES: Final = ("resid_post", "attn_out", "mlp_out")

_WORDS: Final = (
    "church organ town day river stone bread music window letter garden winter horse silver market bridge teacher "
    "doctor island engine paper forest camera village mother summer candle kitchen mirror ocean pencil railway school "
    "tailor uncle valley wagon yellow anchor basket castle desert eagle farmer glacier hammer insect jacket ladder "
    "meadow needle orchard palace quarry rabbit saddle temple umbrella violin whistle"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many texts, and how many words each has: evenly spread between two bounds, in random order."""

    n_texts: int
    fewest: int
    most: int

    def texts(self, seed: int) -> list[str]:
        """Return texts that share no beginning with those of another seed: nothing is found in a prefix cache."""
        chosen = random.Random(seed)
        step = (self.most - self.fewest) / max(1, self.n_texts - 1)
        lengths = [self.fewest + round(step * index) for index in range(self.n_texts)]
        chosen.shuffle(lengths)
        words = _WORDS.split()
        return [" ".join(chosen.choices(words, k=length)) for length in lengths]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of running the texts.

    Attributes
    ----------
    name
        In the table.
    kind
        ``off``: vLLM alone, on our engine; ``consumed``: rows read in the server's process; ``delivered``: rows
        decoded and verified by the client in this one; ``bare``: vLLM alone, on the baseline's engine with its hooks
        removed; ``lens``: the baseline, decoded in this process.
    select
        Selector of the rows.
    sites
        At all layers.
    compress
        Of the baseline: whether tensors are compressed, as published.
    """

    name: str
    kind: str
    select: str = "all"
    sites: Sequence[str] = SITES
    compress: bool = True

    @property
    def needs_baseline(self) -> bool:
        """Whether it runs on the baseline's engine."""
        return self.kind in ("bare", "lens")


VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant("off", "off"),
        Variant("last consumed", "consumed", "last"),
        Variant("last delivered", "delivered", "last"),
        Variant("all consumed", "consumed"),
        Variant("all delivered", "delivered"),
        Variant("all delivered, resid_post", "delivered", sites=("resid_post",)),
        Variant("bare vLLM", "bare"),
        Variant("lens, resid_post", "lens", sites=("resid_post",)),
        Variant("lens", "lens"),
        Variant("lens, uncompressed", "lens", compress=False),
    )
}
