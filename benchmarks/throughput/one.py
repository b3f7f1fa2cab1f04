"""One stage in a process of its own: ``python -m throughput.one STAGE SCALE OUT.json``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from throughput.stages import STAGES


def main() -> None:
    """Measure and write the figures."""
    name, scale, out = sys.argv[1:]
    assert scale in ("small", "full")
    figures = STAGES[name].measure("small" if scale == "small" else "full")
    Path(out).write_text(json.dumps([asdict(figure) for figure in figures]))


if __name__ == "__main__":
    main()
