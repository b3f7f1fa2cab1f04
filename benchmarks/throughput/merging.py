"""The engine alone: what computing shared prefixes once gains, and which budget and number of threads are best."""

import random
import time
from collections.abc import Sequence

import torch

from stratoscope.experiments import EXPERIMENTS, load_experiment
from stratoscope_server.engines.packing import pack
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.torch import TorchRunner
from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from throughput.figure import Figure

SITES = ("resid_post", "attn_out", "mlp_out")


def measure(
    n_stimuli: int = 966, rounds: int = 3, budgets: Sequence[int] = (512, 1024, 2048), threads: Sequence[int] = (1, 2)
) -> list[Figure]:
    """Run the texts of the built-in experiments, and the same words in random order, merged and apart.

    Parameters
    ----------
    n_stimuli
        Texts, from the beginning of the experiments.
    rounds
        Repetitions, each of every way.
    budgets
        Tokens per batch.
    threads
        Of torch.
    """
    runner = load_runner("smollm2-135m", revision=None, dtype="bfloat16", device="cpu", cache_dir=Settings().cache_dir)
    texts = [stimulus.text or "" for name in EXPERIMENTS for stimulus in load_experiment(name.name).stimuli][:n_stimuli]
    kinds = {"templated": prompts_of(runner, texts), "shuffled words": prompts_of(runner, shuffled(texts))}
    ways = [
        (kind, budget, n, merge) for kind in kinds for budget in budgets for n in threads for merge in (True, False)
    ]
    seconds: dict[tuple[str, int, int, bool], list[float]] = {way: [] for way in ways}
    n_threads = torch.get_num_threads()
    for index in range(rounds + 1):
        for way in ways:
            kind, budget, n, merge = way
            torch.set_num_threads(n)
            found = run(runner, kinds[kind], budget, merge=merge)
            # The first round only warms up.
            seconds[way] += [found] if index else []
    torch.set_num_threads(n_threads)
    return [figure(way, found, kinds[way[0]]) for way, found in seconds.items()]


def prompts_of(runner: TorchRunner, texts: Sequence[str]) -> list[Prompt]:
    """Tokenise texts, and ask for the last position."""
    prompts = []
    for index, text in enumerate(texts):
        encoded = runner.tokenizer.encode(text, add_special_tokens=True)
        rows = select_rows(["last"], len(encoded.token_ids), {}, encoded.offsets)
        prompts.append(Prompt(f"s{index}", encoded.token_ids, rows))
    return prompts


def shuffled(texts: Sequence[str]) -> list[str]:
    """Return texts of the same lengths that hardly share a beginning."""
    chance = random.Random(7)
    words = [text.split() for text in texts]
    for each in words:
        chance.shuffle(each)
    return [" ".join(each) for each in words]


def run(runner: TorchRunner, prompts: Sequence[Prompt], budget: int, *, merge: bool) -> float:
    """Return the seconds that all prompts take, all layers of three sites."""
    columns = runner.card.columns(list(SITES))
    runner.merge = merge
    began = time.perf_counter()
    for batch in pack(prompts, budget, merge=merge):
        runner.run(batch, columns, "bfloat16")
    return time.perf_counter() - began


def figure(way: tuple[str, int, int, bool], seconds: Sequence[float], prompts: Sequence[Prompt]) -> Figure:
    """Put what was measured into a row."""
    kind, budget, threads, merge = way
    n_tokens = sum(prompt.n_tokens for prompt in prompts)
    subject = "stratoscope" if merge else "stratoscope, each text for itself"
    measure = f"{kind}, {budget} tokens per batch, {threads} threads"
    limit = "" if not merge else f"stratoscope, each text for itself/{measure}"
    sizes: dict[str, float] = {
        "n_stimuli": len(prompts),
        "n_tokens": n_tokens,
        "threads": threads,
        "batch_tokens": budget,
    }
    return Figure("engine", subject, measure, "tokens/s", tuple(n_tokens / s for s in seconds), sizes, limit)
