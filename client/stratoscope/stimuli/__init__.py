"""Stimuli: loading and checking them before anything is sent."""

from stratoscope.stimuli.files import load_stimuli
from stratoscope.stimuli.table import StimulusTable

__all__ = ["StimulusTable", "load_stimuli"]
