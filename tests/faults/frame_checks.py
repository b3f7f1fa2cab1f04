"""Faults that must not be survived: they show that the frame itself can fail. Run by its tests alone."""

import os
import time
from typing import Final

from tests.faults.fault import Fault, NotHereError, World
from tests.faults.tally import Tally


def _hang(_: World) -> Tally:
    time.sleep(600)
    raise AssertionError


def _crash(_: World) -> Tally:
    os.abort()


def _raise(_: World) -> Tally:
    raise ValueError("an error that nobody expected")


def _absent(_: World) -> Tally:
    raise NotHereError("needs a tool that no machine has")


FAULTS: Final = (
    Fault("GOOD", "is survived", lambda _: Tally(injected=3, survived=3)),
    Fault("LOSE", "loses a stimulus", lambda _: Tally(injected=3, survived=3, lost=1)),
    Fault("DOUBLE", "doubles a stimulus", lambda _: Tally(injected=3, survived=3, doubled=1)),
    Fault("WRONG", "changes a value", lambda _: Tally(injected=3, survived=3, wrong=1)),
    Fault("SUCCUMB", "is not survived", lambda _: Tally(injected=3, survived=2)),
    Fault("HANG", "hangs", _hang, small_s=1),
    Fault("CRASH", "crashes", _crash),
    Fault("RAISE", "raises", _raise),
    Fault("ABSENT", "cannot be injected", _absent),
)
