"""Runs the steps of a Dockerfile in a folder instead of an image, without root and without a container engine.

What an absolute path of the image names lies under that folder. The stages share it, so copying from one stage to the
same path of another does nothing. Steps that only root can take (packages of the system, users) are left out.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.dockerfiles import Instruction, read, stages

ROOT = Path(__file__).parents[2]
ONLY_ROOT = re.compile(r"apt-get|groupadd|--mount")
PATH_OF_THE_IMAGE = re.compile(r"(?<![\w./:-])/(?=(?:build|source|wheels|locked|opt/stratoscope)\b)")


@dataclass
class Replay:
    """The folder, and what the stage under way has set."""

    folder: Path
    without: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    workdir: Path = Path("/")
    ran: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def moved(self, text: str) -> str:
        """Put the folder before each path of the image."""
        return PATH_OF_THE_IMAGE.sub(f"{self.folder}/", text)

    def stage(self, instructions: list[Instruction]) -> None:
        """Take every step of one stage."""
        self.environ, self.workdir = {}, self.folder
        for instruction in instructions:
            match instruction.word:
                case "ENV":
                    self.environ |= {name: self.moved(value) for name, value in instruction.pairs.items()}
                case "ARG":
                    self.environ |= instruction.pairs
                case "WORKDIR":
                    self.workdir = Path(self.moved(instruction.rest))
                    self.workdir.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self.copy(instruction.rest)
                case "RUN":
                    self.run(instruction)

    def copy(self, rest: str) -> None:
        """Copy from the repository; from another stage to the same path there is nothing to do."""
        *option, source, target = rest.split()
        if option:
            assert source == target, rest
            return
        destination = self.workdir / self.moved(target)
        if target.endswith("/"):
            destination = destination / Path(source).name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            # As .dockerignore has it: a build in place would pack what an earlier one left behind.
            left_behind = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
            shutil.copytree(ROOT / source, destination, ignore=left_behind)
        else:
            shutil.copy(ROOT / source, destination)

    def run(self, instruction: Instruction) -> None:
        """Run one command; raise with its output if it fails."""
        if ONLY_ROOT.search(instruction.rest):
            self.left_out.append(instruction.rest)
            return
        rest = instruction.rest
        for words in self.without:
            rest = rest.replace(words, "")
        command = instruction.arguments or ["sh", "-c", rest]
        # An image has neither settings of ours nor packages from elsewhere.
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("STRATOSCOPE_") and n != "PYTHONPATH"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ended = subprocess.run(
            [self.moved(word) for word in command],
            cwd=self.workdir,
            env=inherited | {"PATH": path} | self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{instruction.rest}\n{ended.stdout}{ended.stderr}"
        self.ran.append(instruction.rest)


def replay(name: str, folder: Path, without: tuple[str, ...] = ()) -> Replay:
    """Take every step of a Dockerfile, some words left out; return what the last stage has set."""
    replayed = Replay(folder, without)
    for stage in stages(read(name)):
        replayed.stage(stage)
    return replayed
