"""F22: every crash of the commit protocol, and of worse ones that must fail; and that the real one is the model's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.faults.collecting import OF_A_SHARD
from tests.faults.crash_model import COMMIT, Damage, Protocol, crashes, damage, finish, kills_and_crashes, recovered
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.site import Site
from tests.faults.tally import Tally, one

ADOPTION: Final = ("fsync file", "fsync folder", "commit")

PROTOCOLS: Final = {
    "ours": Protocol(),
    "ours, adopting": Protocol(adopts=ADOPTION),
    "ours, SQLite synchronous=NORMAL": Protocol(full=False),
}

ABLATIONS: Final = {
    "no fsync of the file": Protocol(steps=("write", "rename", "fsync folder", "commit")),
    "no fsync of the folder": Protocol(steps=("write", "fsync file", "rename", "commit")),
    "ledger before rename": Protocol(steps=("write", "fsync file", "commit", "rename", "fsync folder")),
    "two transactions": Protocol(steps=(*COMMIT[:-1], "commit shard", "commit stimuli")),
    "FULL, no sweep, readers glob": Protocol(sweeps=False, reader="glob"),
    "NORMAL, no sweep, readers glob": Protocol(full=False, sweeps=False, reader="glob"),
    "adopting without a sync": Protocol(adopts=("commit",)),
}


def enumerate_crashes(world: World) -> Tally:
    tally = Tally()
    for name, protocol in PROTOCOLS.items():
        damages = _damages(protocol)
        _say(name, damages)
        lost, doubled = sum(d.lost for d in damages), sum(d.doubled for d in damages)
        tally += Tally(len(damages), sum(d.is_none for d in damages), lost, doubled)
    for name, protocol in ABLATIONS.items():
        damages = _damages(protocol)
        _say(name, damages)
        tally += one(any(not d.is_none for d in damages))
    return tally + one(_the_real_order_is_the_models(world))


def _damages(protocol: Protocol) -> list[Damage]:
    disks = [*crashes(protocol), *kills_and_crashes(protocol)]
    return [damage(finish(recovered(disk, protocol), protocol), protocol) for disk in disks]


def _say(name: str, damages: Sequence[Damage]) -> None:
    lost, doubled = sum(d.lost > 0 for d in damages), sum(d.doubled > 0 for d in damages)
    print(f"{name:<34} {len(damages):>4} states, {lost:>3} lose, {doubled:>3} double", flush=True)


def _the_real_order_is_the_models(world: World) -> bool:
    """Trace a real collection: every shard of it must take the steps of the model, in its order."""
    with ServerProcess(world) as server:
        site = Site.make(world.folder / "site", server.url, 64)
        trace = site.folder / "trace"
        assert site.collect("--trace", str(trace)) == 0
        assert site.judge(whole=True)[0].is_clean
    orders = commits_in(trace)
    print(f"{len(orders)} real commits: {', '.join(orders[0])}", flush=True)
    expected = tuple(step for step in OF_A_SHARD if step != "manifest")
    assert tuple(step for step in expected if step in COMMIT) == COMMIT
    return len(orders) > 1 and all(order == expected for order in orders)


def commits_in(trace: Path) -> list[tuple[str, ...]]:
    """Return the steps of each commit of a shard, from its writing to its entry in the ledger, each by its end."""
    orders: list[tuple[str, ...]] = []
    current: list[str] | None = None
    for line in trace.read_text().splitlines():
        moment, _, step = line.partition(" ")
        if step == "write" and moment == "before":
            current = []
        elif moment == "after" and current is not None and step != "receive":
            current.append(step)
            if step == "commit":
                orders.append(tuple(current))
                current = None
    return orders


FAULTS: Final = (Fault("F22", "every crash of the commit protocol; ablations fail", enumerate_crashes),)
