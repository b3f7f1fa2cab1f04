"""What capture costs on a GPU, on random-weight models of the shape of Llama-3.2-3B and Llama-3.1-8B.

One command, no network; the environment needs vLLM and what the server and the client need::

    python benchmarks/gpu/engine.py

It makes each model once, then runs `benchmarks/engine.py` on it: capture off, ``last`` and ``all``, consumed in the
server's process and delivered to a client, and the baseline. CUDA graphs are off in all of them, the run with capture
off included (``enforce_eager``): the taps are Python hooks, which run only where the model runs as Python.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine
from enginebench.shapes import SHAPES, provide

REAL: Final = ("llama-3.2-3b", "llama-3.1-8b")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not known here goes on to `benchmarks/engine.py`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(REAL))
    parser.add_argument("--ranks", nargs="+", type=int, help="tensor-parallel sizes [1, and 2 where there are 2 GPUs]")
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes"), help="where the models are kept; 23 GB")
    parser.add_argument("--dry-run", action="store_true", help="tiny model, on whatever device there is")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every shape on every number of ranks."""
    options, rest = parse(arguments)
    if not torch.cuda.is_available() and not options.dry_run:
        sys.exit("benchmarks/gpu/engine.py: torch sees no GPU; --dry-run tries it out on a tiny model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ["tiny"] if options.dry_run else options.shapes
    ranks = options.ranks or ([1, 2] if torch.cuda.device_count() > 1 else [1])
    # Two engines share each GPU. Texts are long enough to fill steps of the default size many times over.
    common = ["--gpu-memory-utilization", "0.42", "--step-tokens", "2048", "--texts", "512", "--concurrency", "16"]
    for shape in shapes:
        folder = provide(shape, options.folder, device)
        for n_ranks in ranks:
            print(f"\n## {shape}, tensor parallelism {n_ranks}\n", flush=True)
            engine.main(["--model", str(folder), "--tensor-parallel-size", str(n_ranks), *common, *rest])


if __name__ == "__main__":
    main()
