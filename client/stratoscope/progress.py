"""Progress bars on the terminal; silent when the output is piped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int], None]


@contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """Show a bar for one piece of long work.

    Parameters
    ----------
    what
        What is being done, in a few words.

    Yields
    ------
    A function to be called with how much is done and how much there is in all.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
