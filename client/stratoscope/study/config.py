"""A study as data: experiments with their texts, targets and controls, and the questions asked of all together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stratoscope.study.asked import Claim, Coordination, Halves, Heads, RiseFallRise, Transfer
from stratoscope.study.parts import Name, Part, Positive, Scalar
from stratoscope.study.texts import AtDistance, Texts
from stratoscope_wire.sites import LAYER_SITES

Level = Literal["item", "relation", "analogy", "document", "context", "list", "other"]


class Target(Part):
    """What is predicted in an experiment.

    Attributes
    ----------
    label
        Column of the experiment's texts.
    name
        For results; the label by default.
    kind
        ``"classes"`` or ``"values"``; decides the probe and the metrics.
    group
        Column that must not cross folds; the experiment's by default.
    where
        Values that columns must have; other texts are left out.
    by
        Column whose every value makes an analysis of its own, such as ``distance``.
    place
        Which item of a list the label is of, from 1.
    types
        Column of what a memorising probe would recognise, for the type-consistent control.
    control
        Whether this target is itself a control: it is shown, and no claim rests on it.
    """

    label: str
    name: Name | None = None
    kind: Literal["classes", "values"] = "classes"
    group: str | None = None
    where: dict[str, Scalar] = Field(default_factory=dict)
    by: str | None = None
    place: Positive | None = None
    types: str | None = None
    control: bool = False

    @property
    def title(self) -> str:
        """Name of the target in results."""
        return self.name or self.label


class Experiment(Part):
    """Texts, what is predicted of them, and what keeps the prediction honest.

    Attributes
    ----------
    title, question, control
        For the report: what is asked, and what makes the answer valid.
    level
        Kind of thing that is looked for.
    texts
        How the texts are made.
    group
        Column that must not cross folds.
    read
        Selector of the token that is read.
    sites, layers
        Instead of the study's.
    surface
        Numeric columns for the surface baseline; ``n_characters`` and ``n_words`` are always there to choose.
    """

    name: Name
    title: str
    question: str
    control: str
    level: Level = "other"
    texts: Texts
    group: str = "group"
    read: str | None = None
    sites: tuple[str, ...] | None = None
    layers: str | tuple[int, ...] | None = None
    surface: tuple[str, ...] = ("n_characters", "n_words")
    targets: Annotated[tuple[Target, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _targets_have_names_of_their_own(self) -> Self:
        titles = [target.title for target in self.targets]
        twice = [title for title in titles if titles.count(title) > 1]
        if twice:
            raise ValueError(f"experiment {self.name}: two targets are called {twice[0]!r}; give one a name of its own")
        return self


class Reading(Part):
    """What is read of the model; each line is a switch that the paper leaves open, or that we widened."""

    sites: tuple[str, ...] = ("embed", "resid_post", "attn_out", "mlp_out")
    layers: str | tuple[int, ...] = "all"
    read: str = "last"
    add_special_tokens: bool = True


class Statistics(Part):
    """How everything is fitted and tested.

    Attributes
    ----------
    folds, shuffles, seed, resamples
        Outer folds, shuffled label vectors, seed of all draws, resamples of the bootstrap.
    C
        Penalty of support vector machines and logistic regression. Features are standardised, so that inner products
        are as large as the model is wide: C = 1 is then a hard margin, many times slower and no better.
    classes, values
        Probes whose curves are shown.
    test, permutations
        Probe whose labels are permuted (for values it is the one above), and how often.
    splits
        Divisions of the groups into halves that are fitted independently, where a question needs them.
    """

    folds: Annotated[int, Field(ge=2)] = 5
    shuffles: Positive = 5
    seed: int = 0
    resamples: Annotated[int, Field(ge=100)] = 1000
    C: Annotated[float, Field(gt=0)] = 0.01
    classes: str = "svm"
    values: str = "ridge"
    test: str = "ridge_classifier"
    permutations: Annotated[int, Field(ge=0)] = 500
    splits: Positive = 4


class Profile(Part):
    """A smaller version of a study.

    Attributes
    ----------
    experiments, targets
        Those that are kept; all by default. Questions about others are left out.
    n_groups
        Groups kept in each experiment.
    distances, layers, permutations, splits, folds
        Instead of the study's.
    """

    about: str
    experiments: tuple[Name, ...] | None = None
    targets: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    n_groups: Positive | None = None
    distances: tuple[int, ...] | None = None
    layers: str | None = None
    permutations: int | None = None
    splits: Positive | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    shuffles: Positive | None = None
    resamples: Annotated[int, Field(ge=100)] | None = None


class Study(Part):
    """A study; see ``docs/your-own-study.md``."""

    study: Name
    version: str
    title: str
    about: str
    reading: Reading = Reading()
    statistics: Statistics = Statistics()
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    rise_fall_rise: RiseFallRise | None = None
    coordination: Coordination | None = None
    transfer: Transfer | None = None
    heads: Heads | None = None
    claims: tuple[Claim, ...] = ()
    profiles: dict[Name, Profile] = Field(default_factory=dict)
    profile: Name | None = None
    n_groups: Positive | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [experiment.name for experiment in self.experiments]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two experiments are called {twice[0]!r}")
        for asked in self.questions:
            for word in asked.of:
                self.expand(word)
        for claim in self.claims:
            for word in claim.experiments:
                self.experiment(word)
        for what, site in self._named_sites():
            if site not in self.reading.sites:
                raise ValueError(
                    f"{what}: the site {site!r} is not read; reading.sites has {', '.join(self.reading.sites)}"
                )
        return self

    @model_validator(mode="after")
    def _distances_have_a_base(self) -> Self:
        for experiment in self.experiments:
            if isinstance(experiment.texts, AtDistance):
                base = self.experiment(experiment.texts.of)
                if isinstance(base.texts, AtDistance):
                    raise ValueError(
                        f"experiment {experiment.name}: its texts are of {base.name}, itself at a distance"
                    )
        return self

    def _named_sites(self) -> Iterator[tuple[str, str]]:
        """Yield every site that a question or claim names, with who names it."""
        for what in ("rise_fall_rise", "coordination"):
            asked = getattr(self, what)
            yield from ((what, site) for site in (asked.sites if asked else None) or ())
        if self.transfer is not None:
            yield "transfer", self.transfer.site
        yield from ((f"claim {claim.claim!r}", claim.site) for claim in self.claims)

    def sites_of(self, asked: RiseFallRise | Coordination | None) -> tuple[str, ...]:
        """Return the sites of a question; none where it is not asked."""
        if asked is None:
            return ()
        return asked.sites or tuple(site for site in self.reading.sites if site in LAYER_SITES)

    @property
    def questions(self) -> tuple[Halves, ...]:
        """Questions that are asked beyond curves."""
        asked = (self.rise_fall_rise, self.coordination, self.transfer, self.heads)
        return tuple(question for question in asked if question is not None)

    def experiment(self, name: str) -> Experiment:
        """Return an experiment by name.

        Raises
        ------
        ValueError
            If there is none.
        """
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(e.name for e in self.experiments)}")

    def expand(self, word: str) -> list[tuple[Experiment, Target]]:
        """Return the targets that ``EXPERIMENT`` or ``EXPERIMENT/TARGET`` means.

        Raises
        ------
        ValueError
            If there is none.
        """
        name, _, title = word.partition("/")
        experiment = self.experiment(name)
        chosen = [t for t in experiment.targets if (t.title == title if title else not t.control)]
        if not chosen:
            raise ValueError(f"{word!r}: experiment {name} has no such target; see its targets")
        return [(experiment, target) for target in chosen]

    def chosen(self, asked: Halves | None) -> Iterator[tuple[Experiment, Target]]:
        """Yield the targets that a question is about; none where it is not asked."""
        for word in () if asked is None else asked.of:
            yield from self.expand(word)

    def recorded(self) -> dict[str, Any]:
        """Return the study as JSON can hold it, profile applied."""
        return self.model_dump(mode="json", exclude={"profiles"}, exclude_none=True)
