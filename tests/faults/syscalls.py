"""What a program did to files, as strace saw it."""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CALLS: Final = "openat,close,write,pwrite64,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,fsync,fdatasync"
LINE: Final = re.compile(r"^(?P<pid>\d+) +(?P<rest>.*)$")
CALL: Final = re.compile(r"^(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True, slots=True)
class Event:
    """An effect on a file or folder.

    Attributes
    ----------
    kind
        ``create``, ``mkdir``, ``write``, ``truncate``, ``rename``, ``unlink`` or ``sync``.
    path, other
        What it is done to; for ``rename``, to the new name.
    offset, data
        Of a write; `offset` is the length of a ``truncate``.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


def trace(command: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str]) -> list[Event]:
    """Run a command to its end and return what it did to files, in order."""
    options = ["-f", "-xx", "-s", str(1 << 24), "-o", str(log), "-e", f"trace={CALLS}", "-e", "signal=none"]
    subprocess.run(["strace", *options, *command], cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return list(_events(_calls(log)))


def _calls(log: Path) -> Iterator[tuple[str, str, int]]:
    """Yield name, arguments and result of every call that succeeded."""
    unfinished: dict[str, str] = {}
    for line in log.read_text().splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        pid, rest = found["pid"], found["rest"]
        if rest.endswith("<unfinished ...>"):
            unfinished[pid] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if rest.startswith("<... "):
            rest = unfinished.pop(pid) + rest.partition("resumed>")[2]
        call = CALL.match(rest)
        if call is not None and int(call["result"]) >= 0:
            yield call["name"], call["arguments"], int(call["result"])


def _events(calls: Iterator[tuple[str, str, int]]) -> Iterator[Event]:
    paths: dict[int, str] = {}
    positions: dict[int, int] = {}
    for name, arguments, result in calls:
        texts = [bytes.fromhex(text.replace("\\x", "")) for text, _ in TEXT.findall(arguments)]
        if name == "openat":
            paths[result], positions[result] = texts[0].decode(), 0
            if "O_CREAT" in arguments:
                yield Event("create", paths[result])
            if "O_TRUNC" in arguments:
                yield Event("truncate", paths[result])
        elif name == "mkdir":
            yield Event("mkdir", texts[0].decode())
        elif name.startswith("rename"):
            yield Event("rename", texts[0].decode(), texts[1].decode())
        elif name.startswith("unlink"):
            yield Event("unlink", texts[0].decode())
        else:
            yield from _of_descriptor(name, arguments, texts, paths, positions)


def _of_descriptor(
    name: str, arguments: str, texts: list[bytes], paths: dict[int, str], positions: dict[int, int]
) -> Iterator[Event]:
    descriptor = int(arguments.split(",")[0])
    if name == "close":
        paths.pop(descriptor, None)
    elif descriptor not in paths:
        return  # a pipe or a socket
    elif name == "write":
        yield Event("write", paths[descriptor], offset=positions[descriptor], data=texts[0])
        positions[descriptor] += len(texts[0])
    elif name == "pwrite64":
        yield Event("write", paths[descriptor], offset=int(arguments.rpartition(",")[2]), data=texts[0])
    elif name == "ftruncate":
        yield Event("truncate", paths[descriptor], offset=int(arguments.rpartition(",")[2]))
    else:
        yield Event("sync", paths[descriptor])
