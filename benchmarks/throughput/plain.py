"""The plain script of a researcher, run in its environment on what our side was given."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stratoscope.probes.estimators import Settings
from throughput.ours import model_folder
from throughput.outcome import STAGES, Outcome
from throughput.peer import environment, python_of

SCRIPT: Final = "peers.plain_script"

DEFAULT_TOLERANCE: Final = 1e-3
"""Of scikit-learn, which a script leaves as it is; at 1e-6 its search takes half as long again."""


def plain(given: Sequence[Mapping[str, Any]], folder: Path) -> Outcome:
    """Run the plain script in its environment."""
    python = python_of(".venv-peers/huggingface")
    order, out = folder / "order.json", folder / "told.json"
    order.write_text(json.dumps(plain_order(given, DEFAULT_TOLERANCE)))
    subprocess.run([python, "-m", SCRIPT, order, out], check=True, env=environment())
    told = json.loads(out.read_text())
    return Outcome({stage: told[stage] for stage in STAGES}, told["curves"])


def plain_order(given: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, Any]:
    """Return all that the plain script is told; `tolerance` ends the search of a support vector machine."""
    settings = Settings()
    return {
        "model": str(model_folder()),
        "threads": len(os.sched_getaffinity(0)),
        "C": settings.C[0],
        "tolerance": tolerance,
        "alphas": settings.alpha,
        "inner_folds": settings.inner_folds,
        "experiments": given,
    }
