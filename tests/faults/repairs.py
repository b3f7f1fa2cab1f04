"""F27: committed shards are damaged in every way; `verify` names them, `--repair` gives up exactly their stimuli."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stratoscope.cli import exits
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess, run_client
from tests.faults.refusals import digests
from tests.faults.site import Site
from tests.faults.tally import Tally

N_STIMULI: Final = 160

Damage = Callable[[World, Path, Path], None]
"""Does something to the first shard; the second is another one of the run."""


def damage_shards(world: World) -> Tally:
    tally = Tally()
    with ServerProcess(world) as server:
        for number in range(world.pick(1, 5)):
            site = Site.make(world.folder / f"site{number}", server.url, N_STIMULI)
            assert site.collect() == 0
            for name, damage in list(DAMAGES.items())[: world.pick(3, len(DAMAGES))]:
                print(name, flush=True)
                tally += _damage_and_mend(world, site, damage)
    return tally


def _damage_and_mend(world: World, site: Site, damage: Damage) -> Tally:
    shards = _stimuli_by_shard(site.run)
    assert len(shards) > 3, "several shards were to be written"
    victim, other = world.random.sample(sorted(shards), 2)
    folder = site.run / "shards"
    damage(world, folder / victim, folder / other)
    before = digests(site.run)
    found = run_client(["verify", site.run])
    named = found.returncode == exits.DAMAGED and victim in found.stdout and digests(site.run) == before
    stopped = site.collect() in (exits.DAMAGED, exits.OK)
    mended = run_client(["verify", site.run, "--repair"])
    given_up = set(site.texts) - site.census(whole=False).there
    exact = mended.returncode == exits.OK and given_up == set(shards[victim])
    kept = {name: digest for name, digest in before.items() if name.startswith("shards/") and victim not in name}
    untouched = kept.items() <= digests(site.run).items()
    finished = site.collect() == 0 and run_client(["verify", site.run]).returncode == exits.OK
    outcome, _ = site.judge(whole=True)
    good = named and stopped and exact and untouched and finished
    if not good:
        print(f"{named=} {stopped=} {exact=} {untouched=} {finished=}\n{found.stdout}{found.stderr}{mended.stderr}")
    return outcome if good else Tally(1, 0, outcome.lost, outcome.doubled, outcome.wrong)


def _stimuli_by_shard(run: Path) -> dict[str, list[str]]:
    database = sqlite3.connect(run / "ledger.sqlite")
    shards: dict[str, list[str]] = {}
    for shard, name in database.execute("SELECT shard, id FROM stimulus WHERE state = 'done'"):
        shards.setdefault(shard, []).append(name)
    database.close()
    return shards


def _truncate(world: World, shard: Path, _: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: world.random.randrange(len(content))])


def _flip(world: World, shard: Path, _: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[world.random.randrange(len(content))] ^= 1 << world.random.randrange(8)
    shard.write_bytes(content)


def _delete(_: World, shard: Path, __: Path) -> None:
    shard.unlink()


def _empty(_: World, shard: Path, __: Path) -> None:
    shard.write_bytes(b"")


def _exchange(_: World, shard: Path, other: Path) -> None:
    shard.write_bytes(other.read_bytes())


DAMAGES: Final[dict[str, Damage]] = {
    "truncated": _truncate,
    "a bit flipped": _flip,
    "deleted": _delete,
    "emptied": _empty,
    "another shard's content": _exchange,
}

FAULTS: Final = (Fault("F27", "shards truncated, flipped, deleted, emptied, exchanged", damage_shards, 120, 600),)
