"""A peer's process: started once, then told to run a repetition whenever its turn comes."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BENCHMARKS: Final = Path(__file__).resolve().parent.parent
ROOT: Final = BENCHMARKS.parent

STOP_SECONDS: Final = 60

States = dict[str, npt.NDArray[np.float32]]


class PeerError(Exception):
    """A peer's process ended, or gives other values than it should."""


class Peer:
    """A running peer; see `running`.

    Parameters
    ----------
    module
        Of `peers`.
    process
        Which answers a line with a line.
    """

    def __init__(self, module: str, process: "subprocess.Popen[str]") -> None:
        self._module = module
        self._process = process
        told = self._answer()
        self.versions: Mapping[str, str] = told["versions"]

    def seconds(self, way: str, texts: Sequence[str], size: int) -> float:
        """Return how long texts take in batches of `size`."""
        return float(self._ask({"way": way, "texts": list(texts), "size": size})["seconds"])

    def states(self, way: str, texts: Sequence[str], size: int, folder: Path) -> tuple[States, int]:
        """Return every column's rows of texts and the number of tokens they have."""
        out = folder / f"{self._module}-{way}.npz"
        told = self._ask({"way": way, "texts": list(texts), "size": size, "out": str(out)})
        with np.load(out) as found:
            return dict(found), int(told["tokens"])

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(timeout=60)
            raise PeerError(f"peers.{self._module} ended with code {code}; what it printed above says why")
        return json.loads(line)


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's environment, a folder below the repository.

    Raises
    ------
    PeerError
        If the environment is not there.
    """
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        raise PeerError(f"the environment {environment} does not exist; make it with: make bench-setup, or setup-vllm")
    return python


def environment() -> dict[str, str]:
    """Return the variables of a peer's process: our modules are found, nothing is fetched."""
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


@contextmanager
def running(module: str, python: Path, model: Path, threads: int, dtype: str = "bfloat16") -> Iterator[Peer]:
    """Start a peer with an interpreter that has it, and give it once its model is loaded.

    Raises
    ------
    PeerError
        If it does not start.
    """
    order = json.dumps({"model": str(model), "threads": threads, "dtype": dtype})
    process = subprocess.Popen(
        [python, "-m", f"peers.{module}", order],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "OMP_NUM_THREADS": str(threads)},
    )
    try:
        yield Peer(module, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def farthest(mine: States, theirs: States) -> float:
    """Return the largest relative L2 distance of a column that both have.

    Raises
    ------
    PeerError
        If they have no column in common, or one of another shape.
    """
    common = mine.keys() & theirs.keys()
    if not common:
        raise PeerError(f"no column in common: {sorted(mine)[:3]} and {sorted(theirs)[:3]}")
    worst = 0.0
    for name in common:
        if mine[name].shape != theirs[name].shape:
            raise PeerError(f"{name} has shape {mine[name].shape} here and {theirs[name].shape} there")
        worst = max(worst, float(np.linalg.norm(mine[name] - theirs[name]) / np.linalg.norm(theirs[name])))
    return worst
