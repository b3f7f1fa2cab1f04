"""Where a server process listens, as it tells on stderr."""

import re
import subprocess
from typing import Final

ADDRESS: Final = re.compile(r"running on (https?://\S+)")


def read_address(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read stderr until the server says where it listens; return the address, and all that it said so far."""
    assert process.stderr is not None
    log = ""
    while not (found := ADDRESS.search(log)):
        line = process.stderr.readline()
        assert line, log
        log += line
    return found.group(1), log
