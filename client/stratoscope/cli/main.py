"""The commands. Each one reads its arguments, calls one function of the package and says what came of it."""

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from stratoscope import __version__
from stratoscope.cli import exits, study, words
from stratoscope.cli.logfile import LogFile, log_to
from stratoscope.cli.servers import Compression, Servers, connected
from stratoscope.client import Client

app = typer.Typer(
    name="stratoscope",
    help="Shows what every layer of a large language model knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(study.app)

Server = Annotated[
    str | None, typer.Option(metavar="URL", help="Address of the server [STRATOSCOPE_BASE_URL, or 127.0.0.1:8000].")
]
Stimuli = Annotated[str, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file, or item, relation, analogy.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or its address: s3://...")]
Sites = Annotated[str, typer.Option(help="Sites, separated by commas.")]
Layers = Annotated[str, typer.Option(help="all, numbers separated by commas, or a slice such as 0:80:4.")]
Select = Annotated[str, typer.Option(help="Selectors, separated by commas: last, all, mean, -2, noun:last ...")]

ASK_AGAIN: Final = 1
"""Retries of commands that only ask; a person waits for them, unlike for a collection."""

DEFAULT_SITES: Final = "resid_post,attn_out,mlp_out"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def serve(context: typer.Context) -> None:
    """Serve a model; flags are those of stratoscope-server (--engine, --model, --dtype, --host, --port ...)."""
    from stratoscope.local_server import server_command

    command = server_command(context.args)
    os.execv(command[0], command)  # noqa: S606 - the same program as `stratoscope-server`


@app.command()
def collect(
    stimuli: Stimuli,
    out: Annotated[str, typer.Option(metavar="RUN", help="Folder of the run, or an address: s3://bucket/run.")],
    server: Servers = None,
    sites: Sites = DEFAULT_SITES,
    layers: Layers = "all",
    select: Select = "last",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight, per server.")] = 2,
    on_refusal: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do about a stimulus the server refuses for good.")
    ] = "stop",
    special_tokens: Annotated[bool, typer.Option(help="Add the model's special tokens.")] = True,
    desk: Annotated[
        Path | None, typer.Option(help="Local folder used while writing to an address [in the cache].")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="End the turn of another desk that writes to the same address.")
    ] = False,
    compression: Compression = "auto",
    log_file: LogFile = None,
) -> None:
    """Collect activations of stimuli into a run; the same command finishes an interrupted one."""
    from stratoscope.collection import CollectSettings, Progress
    from stratoscope.collection import collect as collect_run
    from stratoscope.progress import progress_bar

    if log_file is not None:
        log_to(log_file)
    table = words.read_stimuli(stimuli)
    with connected(server, compression) as clients, progress_bar(f"collecting {len(table)} stimuli") as bar:

        def show(counts: Progress) -> None:
            bar(counts.already_there + counts.fetched, counts.total)

        counts = collect_run(
            table,
            out,
            clients,
            sites=words.names(sites),
            layers=words.layers(layers),
            select=words.names(select),
            add_special_tokens=special_tokens,
            concurrency=concurrency,
            settings=CollectSettings(on_refusal=on_refusal, desk=desk, take_over=take_over),
            progress=show,
        )
    typer.echo(words.collected(counts, out))
    if not counts.is_complete:
        raise typer.Exit(exits.INCOMPLETE)


@app.command()
def verify(
    run: RunFolder,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put damaged shards aside and set exactly their stimuli back to missing.")
    ] = False,
) -> None:
    """Read every byte of a run and name every damaged shard with its stimuli."""
    from stratoscope.store import repair as mending

    verdict = mending.repair(run) if repair else mending.verify(run)
    typer.echo(words.verified(verdict, run, repaired=repair))
    if verdict.damages and not repair:
        raise typer.Exit(exits.DAMAGED)


@app.command()
def probe(
    run: RunFolder,
    label: Annotated[list[str], typer.Option(metavar="COLUMN", help="What to predict; may be given several times.")],
    group: Annotated[
        str, typer.Option(metavar="COLUMN", help="What must not be both trained on and tested on, such as the item.")
    ],
    probe: Annotated[
        Literal["svm", "ridge", "ridge_classifier", "lda", "logistic", "linear_svc"],
        typer.Option(help="ridge for numbers, the others for classes."),
    ] = "svm",
    sites: Annotated[str | None, typer.Option(help="Sites, separated by commas [all of the run].")] = None,
    selector: Annotated[str | None, typer.Option(help="Selector, where the run has several.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Outer folds.")] = 5,
    shuffles: Annotated[int, typer.Option(min=1, help="Shuffled label vectors of the control.")] = 5,
    permutations: Annotated[
        int, typer.Option(min=0, help="Permutations of the test over all layers; 1000 are cheap for ridge probes.")
    ] = 0,
    types: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Types of the control task that tells memory from knowledge.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, shuffles and permutations.")] = 0,
    jobs: Annotated[int, typer.Option(help="Columns fitted at the same time; -1 for one per core.")] = -1,
    out: Annotated[Path | None, typer.Option(help="Folder of the results [the run itself].")] = None,
) -> None:
    """Fit a probe on every site and layer of a run, for one or more labels; the same command goes on with it."""
    from stratoscope.probing import ProbeSettings, probe_run
    from stratoscope.progress import progress_bar
    from stratoscope.reporting import summarise_result
    from stratoscope.store.run import Run
    from stratoscope.targets import Target

    chosen = tuple(words.names(sites)) if sites else None
    settings = ProbeSettings(selector, chosen, folds, shuffles, seed, jobs, permutations, types)
    opened = Run.open(run)
    for column in label:
        with progress_bar(f"probing {column}") as bar:
            result = probe_run(opened, Target(column, probe, group), settings, bar, out=out)
        typer.echo(words.peaks_table(summarise_result(result, opened).peaks))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report [the run itself].")] = None,
) -> None:
    """Draw the layer curves of one or more probed runs into one self-contained HTML report."""
    from stratoscope.reporting import report_runs

    if out is None and len(runs) > 1:
        raise typer.BadParameter("several runs make one report: say where with --out FOLDER")
    typer.echo(str(report_runs(runs, out or runs[0])))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs and report go.")] = Path("runs/demo"),
    server: Server = None,
    model: Annotated[str, typer.Option(help="Model of the server that is started when --server is not given.")] = (
        "smollm2-135m"
    ),
) -> None:
    """Run the whole loop on a small real model: serve, collect three experiments, probe, report."""
    from stratoscope.demo import run_demo

    outcome = run_demo(out, server=server, model=model, say=lambda line: typer.echo(line, err=True))
    typer.echo(words.peaks_table(outcome.peaks))
    typer.echo(f"\nreport: {outcome.report}")


@app.command()
def plan(
    stimuli: Stimuli,
    server: Server = None,
    sites: Sites = DEFAULT_SITES,
    layers: Layers = "all",
    select: Select = "last",
) -> None:
    """Say what collecting stimuli would cost, without running the model."""
    from stratoscope.planning import plan_collection

    with Client(server, max_retries=ASK_AGAIN) as client:
        cost = plan_collection(
            words.read_stimuli(stimuli),
            client,
            sites=words.names(sites),
            layers=words.layers(layers),
            select=words.names(select),
        )
    typer.echo(words.planned(cost))


@app.command()
def model(
    server: Server = None,
    json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show the model card and the limits of a server."""
    with Client(server, max_retries=ASK_AGAIN) as client:
        card, limits = client.model(), client.limits()
    typer.echo(card.model_dump_json(indent=2) if json else words.model_card(card, limits))


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; its suffix says how.")],
    sites: Annotated[str | None, typer.Option(help="Sites, separated by commas [all of the run].")] = None,
    layers: Layers = "all",
    selector: Annotated[str | None, typer.Option(help="Selector, where the run has several.")] = None,
) -> None:
    """Export labels and activations of a run to one .parquet, .npz or .csv file."""
    from stratoscope.exports import export as export_run
    from stratoscope.store.run import Run

    chosen = words.names(sites) if sites else None
    typer.echo(str(export_run(Run.open(run), out, sites=chosen, layers=words.layers(layers), selector=selector)))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
