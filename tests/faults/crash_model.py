"""To come."""

from typing import Final

from tests.faults.fault import Fault

FAULTS: Final[tuple[Fault, ...]] = ()
