"""The built-in experiments: stimulus tables with a documented design, and what is probed in each.

They are a reconstruction after Bogdan 2025 (arXiv 2501.07359), written for this project; see ``README.md`` beside.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

from stratoscope.errors import StimulusError
from stratoscope.stimuli import StimulusTable, load_stimuli
from stratoscope.targets import Target


@dataclass(frozen=True, slots=True)
class Experiment:
    """A built-in experiment.

    Attributes
    ----------
    name
        Of its table, and of its run in a folder of runs.
    title, description
        For a report.
    targets
        What is probed.
    """

    name: str
    title: str
    description: str
    targets: tuple[Target, ...]


EXPERIMENTS = (
    Experiment(
        "item",
        "Item properties",
        "One object per text, such as “An apple”. Which properties of the object can be read?",
        (
            *(Target(label, "svm", "group") for label in ("edible", "living", "large", "elongated", "self_moving")),
            Target("log10_size_cm", "ridge", "group"),
        ),
    ),
    Experiment(
        "relation",
        "Two-item relations",
        "Two items per text, such as “A church and organ”: a related pair, or the same items re-paired inside a small "
        "block. Every item occurs equally often in both, so items alone are at chance.",
        (Target("related", "svm", "group"),),
    ),
    Experiment(
        "analogy",
        "Four-item analogies",
        "Two good pairs per text, of the same relation (valid) or of different ones (invalid). Every pair occurs "
        "equally often in both, so items and pairs alone are at chance.",
        (Target("valid", "svm", "group"),),
    ),
)


def load_experiment(name: str) -> StimulusTable:
    """Load the stimuli of a built-in experiment.

    Raises
    ------
    StimulusError
        If there is none of that name.
    """
    names = [experiment.name for experiment in EXPERIMENTS]
    if name not in names:
        raise StimulusError(f"there is no built-in experiment {name!r}; there are {', '.join(names)}")
    with as_file(files(__package__) / f"{name}.csv") as path:
        return load_stimuli(path)
