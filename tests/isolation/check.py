"""Install each distribution alone in an empty environment and import every one of its modules.

An import that reaches into another distribution, or into a dependency that was not declared, fails here.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
package, absent, skipped = sys.argv[1], sys.argv[2].split(","), [name for name in sys.argv[3].split(",") if name]
for name in absent:
    assert importlib.util.find_spec(name) is None, f"{name} is installed"
names = [package]
def unimportable(name):
    if name not in skipped:
        sys.exit(f"cannot import {name}")
for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".", unimportable):
    names.append(module.name)
names = [name for name in names if not name.startswith(tuple(skipped))]
assert len(names) > 5, names
for name in names:
    importlib.import_module(name)
print(f"{package}: {len(names)} modules imported without {', '.join(absent)}")
"""


@dataclass(frozen=True)
class Distribution:
    """A distribution, what must not be there with it, and the modules that need an extra."""

    package: str
    install: tuple[str, ...]
    absent: tuple[str, ...]
    needs_extra: tuple[str, ...] = ()


ENGINES = "stratoscope_server.engines"
PRETRAINED = tuple(f"{ENGINES}.{name}" for name in ("pretrained", "torch", "vllm"))
# The rest of the vLLM engine can be imported without vLLM, and is. The engine's own tests import all of it.
VLLM = tuple(
    f"{ENGINES}.vllm.{name}"
    for name in (
        "cpu_worker",
        "engine",
        "gpu_worker",
        "launch",
        "recorder",
        "runner_v1",
        "traffic",
        "watch",
        "worker",
    )
)
DISTRIBUTIONS = (
    Distribution(
        "stratoscope_wire", ("./shared",), ("fastapi", "httpx2", "torch", "stratoscope", "stratoscope_server")
    ),
    Distribution("stratoscope", ("./shared", "./client"), ("torch", "transformers", "fastapi", "stratoscope_server")),
    Distribution("stratoscope_server", ("./shared", "./services"), ("torch", "stratoscope", "httpx2"), PRETRAINED),
    Distribution(
        "stratoscope_server", ("torch==2.13.0", "./shared", "./services[torch]"), ("stratoscope", "vllm"), VLLM
    ),
)


def check(distribution: Distribution, folder: Path) -> None:
    """Install and import one distribution; raise if either fails."""
    venv.create(folder)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    # Built from a copy: a build in place leaves folders behind that the next build would pack again.
    source = shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "runs")
    )
    for wanted in distribution.install:
        subprocess.run([*pip, "--no-compile", "--constraint", "constraints.txt", wanted], cwd=source, check=True)
    arguments = [distribution.package, ",".join(distribution.absent), ",".join(distribution.needs_extra)]
    subprocess.run([python, "-W", "error", "-c", IMPORT_ALL, *arguments], cwd=folder, check=True)


def main() -> None:
    """Check every distribution."""
    for distribution in DISTRIBUTIONS:
        with tempfile.TemporaryDirectory(prefix="stratoscope-alone-") as folder:
            check(distribution, Path(folder))


if __name__ == "__main__":
    main()
