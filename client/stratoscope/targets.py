"""Targets: what is to be predicted from activations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be predicted from the activations of a run.

    Attributes
    ----------
    label
        Column of the stimuli.
    probe
        ``"svm"`` for two classes, ``"ridge"`` for a number.
    group
        Column that says which stimuli must not be both trained on and tested on.
    """

    label: str
    probe: str
    group: str
