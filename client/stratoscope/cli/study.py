"""``stratoscope study``: whole programmes of experiments. Each command reads its arguments and calls one function."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stratoscope.cli import words
from stratoscope.cli.logfile import LogFile, log_to
from stratoscope.cli.servers import Servers, connected
from stratoscope.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    name="study",
    help="Run whole programmes of experiments: list, show, plan, run, report, compare.",
    no_args_is_help=True,
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a built-in study, or a .yaml file.")]
ProfileName = Annotated[str | None, typer.Option(metavar="NAME", help="A smaller version of the study, such as quick.")]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="Address of the server [STRATOSCOPE_BASE_URL, or 127.0.0.1:8000].")
]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a study's run.")]


@app.command("list")
def list_() -> None:
    """List the built-in studies and their profiles."""
    from stratoscope.study.catalogue import builtin_studies, read_study

    for name in builtin_studies():
        study, _ = read_study(name)
        typer.echo(f"{name}: {study.title} ({len(study.experiments)} experiments, version {study.version})")
        for profile, one in study.profiles.items():
            typer.echo(f"  --profile {profile}: {one.about}")


@app.command()
def show(study: StudyName, profile: ProfileName = None) -> None:
    """Show the experiments of a study, with examples of their texts; no server is needed."""
    from stratoscope.study.catalogue import read_study
    from stratoscope.study.stimuli import make_stimuli

    read, folder = read_study(study, profile=profile)
    typer.echo(words.shown_study(read, make_stimuli(read, folder)))


@app.command()
def stimuli(
    study: StudyName,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the tables, one per experiment.")],
    profile: ProfileName = None,
) -> None:
    """Write the stimuli of a study, with labels and groups, as CSV and Parquet; no server is needed."""
    from stratoscope.study.catalogue import read_study
    from stratoscope.study.stimuli import make_stimuli
    from stratoscope.study.workspace import write_frame

    read, folder = read_study(study, profile=profile)
    for name, frame in make_stimuli(read, folder).items():
        write_frame(frame, out / name)
        typer.echo(f"{out / name}.csv: {frame.height} texts")


@app.command()
def plan(
    study: StudyName,
    server: Server = None,
    profile: ProfileName = None,
    rehearse: Annotated[bool, typer.Option(help="Time a few of the texts on the model, to forecast the rest.")] = True,
) -> None:
    """Say what a study would take: stimuli, tokens, bytes, fits and expected time."""
    from stratoscope.study.catalogue import read_study
    from stratoscope.study.planning import plan_study
    from stratoscope.study.stimuli import make_stimuli

    read, folder = read_study(study, profile=profile)
    with Client(server) as client:
        typer.echo(words.planned_study(plan_study(read, make_stimuli(read, folder), client, rehearse=rehearse)))


@app.command()
def run(
    study: StudyName,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    server: Servers = None,
    profile: ProfileName = None,
    log_file: LogFile = None,
) -> None:
    """Run a study from stimuli to report; the same command finishes an interrupted one."""
    from stratoscope.study.catalogue import read_study
    from stratoscope.study.running import run_study

    if log_file is not None:
        log_to(log_file)
    read, folder = read_study(study, profile=profile)
    with connected(server) as clients:
        path = run_study(read, folder, out, clients, bar=_bar, say=lambda line: typer.echo(line, err=True))
    _tell(out, path)


@app.command()
def report(run: Folder) -> None:
    """Draw the report of a study that was run; nothing is fetched or fitted."""
    from stratoscope.study.summary import report_study
    from stratoscope.study.workspace import Workspace

    _tell(run, report_study(Workspace(run)))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of one study's runs on several models.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the comparison.")],
) -> None:
    """Compare models on one study, by absolute layer and by relative depth, each with its baselines."""
    from stratoscope.study.compare import compare_studies, verdict_on_baselines
    from stratoscope.study.workspace import Workspace

    path = compare_studies(runs, out)
    typer.echo(verdict_on_baselines(Workspace(out).table("baseline")))
    typer.echo(f"\ncomparison: {path}")


@app.command("import")
def import_(
    kind: Annotated[Literal["bats", "lre", "semeval2012", "csv"], typer.Argument(help="What the files are.")],
    path: Annotated[Path, typer.Argument(help="Their folder or file; none of them comes with the package.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table of pairs to write, .csv or .parquet.")],
    first: Annotated[str, typer.Option(metavar="COLUMN", help="Of a csv.")] = "first",
    second: Annotated[str, typer.Option(metavar="COLUMN", help="Of a csv.")] = "second",
    relation: Annotated[str, typer.Option(metavar="COLUMN", help="Of a csv.")] = "relation",
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Keep pairs that share no word, as the designs of pairs need them.")
    ] = False,
) -> None:
    """Turn relation sets that you have (BATS, LRE, SemEval-2012 task 2, a plain csv) into a table of pairs."""
    from stratoscope.study.designs.pair_tables import disjoint as disjoint_pairs
    from stratoscope.study.importers import read_bats, read_lre, read_pairs_csv, read_semeval2012, write_pairs

    if kind == "csv":
        pairs = read_pairs_csv(path, first=first, second=second, relation=relation)
    else:
        pairs = {"bats": read_bats, "lre": read_lre, "semeval2012": read_semeval2012}[kind](path)
    if disjoint:
        pairs = disjoint_pairs(pairs, seed=0)
    write_pairs(pairs, out)
    typer.echo(f"{out}: {pairs.height} pairs of {pairs['relation'].n_unique()} relations")


def _bar(what: str) -> "AbstractContextManager[Callable[[int, int], None]]":
    from stratoscope.progress import progress_bar

    return progress_bar(what)


def _tell(out: Path, page: Path) -> None:
    from stratoscope.study.workspace import Workspace

    typer.echo(words.told_claims(Workspace(out).table("claims")))
    typer.echo(f"\nreport: {page}")
