"""F31: a long collection with one fault a second; then all must be there, and nothing may have grown.

In the first quarter of the stimuli every fault is drawn, SIGKILL of either side included, and what ended is started
again. After that only faults that processes live through are drawn, so that their memory can be watched.
"""

import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.faults.engine import STEERED
from tests.faults.fault import Fault, World
from tests.faults.memory import Memory
from tests.faults.processes import ServerProcess
from tests.faults.proxy import Conduct, CutError, Proxy
from tests.faults.site import Site
from tests.faults.tally import Tally

TIMEOUT_S: Final = 10.0
STALL_S: Final = 4.0
NO_PROGRESS_S: Final = 120.0
WARM_UP_S: Final = 60.0
MAX_GROWTH_MIB_PER_MINUTE: Final = 1.0
ON_THE_WIRE: Final = ("cut", "reset", "stall", "slow", "refuse")
ENDING: Final = ("flip", "kill server", "kill client", "stop server", "stop client")


@dataclass(slots=True)
class Weather:
    """What happens on the wire: the next fault waits until an answer passes by."""

    world: World
    waiting: list[str] = field(default_factory=list)
    slow_until: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)

    def conduct(self) -> Conduct:
        """Decide about a new connection."""
        if "refuse" in self.waiting:
            self.waiting.remove("refuse")
            self.happened["refuse"] += 1
            return Conduct(refuse=True)
        return Conduct(meddle=self._meddle, slice_bytes=4096)

    def _meddle(self, piece: bytes) -> bytes:
        if time.monotonic() < self.slow_until:
            time.sleep(0.05)
        kind = next((kind for kind in self.waiting if kind != "refuse"), None)
        if len(piece) < 2000 or kind is None:
            return piece
        self.waiting.remove(kind)
        self.happened[kind] += 1
        return _FAULTS_OF_THE_WIRE[kind](self, piece)

    def cut(self, _: bytes) -> bytes:
        raise CutError("fin")

    def reset(self, _: bytes) -> bytes:
        raise CutError("rst")

    def stall(self, piece: bytes) -> bytes:
        time.sleep(STALL_S)
        return piece

    def slow(self, piece: bytes) -> bytes:
        self.slow_until = time.monotonic() + 2
        return piece

    def flip(self, piece: bytes) -> bytes:
        """Flip a bit well inside the body; HTTP's own lines are not covered by any checksum."""
        bit = self.world.random.randrange(8 * 1000, 8 * (len(piece) - 16))
        changed = bytearray(piece)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)


_FAULTS_OF_THE_WIRE: Final[dict[str, Callable[[Weather, bytes], bytes]]] = {
    "cut": Weather.cut,
    "reset": Weather.reset,
    "stall": Weather.stall,
    "slow": Weather.slow,
    "flip": Weather.flip,
}


@dataclass(slots=True)
class Soak:
    """The two processes and what is done to them."""

    world: World
    server: ServerProcess
    site: Site
    weather: Weather
    client: subprocess.Popen[bytes]
    memories: tuple[Memory, Memory] | None = None
    hangs: int = 0
    restarts: int = 0

    def run(self, deadline: float) -> None:
        """Inject a fault a second until everything is collected."""
        progress, since = 0, time.monotonic()
        while not self._is_done() and time.monotonic() < deadline:
            time.sleep(1)
            n_done = self.n_done()
            if n_done > progress:
                progress, since = n_done, time.monotonic()
            if time.monotonic() - since > NO_PROGRESS_S:
                self.hangs += 1
                return
            self._inject(calm=n_done >= len(self.site.texts) / 4)
        self.hangs += int(time.monotonic() >= deadline)

    def n_done(self) -> int:
        database = sqlite3.connect(self.site.run / "ledger.sqlite", timeout=30)
        try:
            found: int = database.execute("SELECT count(*) FROM stimulus WHERE state = 'done'").fetchone()[0]
            return found
        except sqlite3.OperationalError:
            return 0  # it was killed before its ledger had tables
        finally:
            database.close()

    def _is_done(self) -> bool:
        if self.client.poll() is None:
            return False
        if self.client.returncode == 0 and self.n_done() == len(self.site.texts):
            return True
        self.restarts += 1
        self.client = self.site.start(*OPTIONS)
        return False

    def _inject(self, *, calm: bool) -> None:
        kind = self.world.random.choice(ON_THE_WIRE if calm else 2 * ON_THE_WIRE + ENDING)
        if kind in ON_THE_WIRE or kind == "flip":
            self.weather.waiting.append(kind)
        else:
            self._end(kind)
        if calm:
            self._watch()

    def _end(self, kind: str) -> None:
        self.weather.happened[kind] += 1
        verb, _, side = kind.partition(" ")
        number = signal.SIGKILL if verb == "kill" else signal.SIGTERM
        if side == "server":
            self.server.kill(number)
            self.server.restart()
        elif self.client.poll() is None:
            self.client.send_signal(number)
            self.client.wait(60)

    def _watch(self) -> None:
        if self.memories is None or self.memories[1].pid != self.client.pid:
            self.memories = Memory(self.server.pid), Memory(self.client.pid)
        for memory in self.memories:
            memory.sample()


OPTIONS: Final = (
    "--timeout", str(TIMEOUT_S), "--request-bytes", "8192", "--shard-bytes", "16384", "--concurrency", "4",
)  # fmt: skip


def soak(world: World) -> Tally:
    n_stimuli = world.pick(400, 20_000)
    deadline = time.monotonic() + world.pick(110, 3400)
    weather = Weather(world)
    flags = ("--max-batch-tokens", "64", "--drain-seconds", "5")
    pace = ("--pace", str(world.pick(30, 40) / 100))
    with ServerProcess(world, *flags, program=STEERED, first=pace) as server, Proxy(server.port) as proxy:
        proxy.treat(weather.conduct)
        site = Site.make(world.folder / "site", proxy.url, n_stimuli)
        began = time.monotonic()
        run = Soak(world, server, site, weather, site.start(*OPTIONS))
        run.run(deadline)
        seconds = time.monotonic() - began
    outcome, _ = site.judge(whole=True)
    n_faults = sum(weather.happened.values())
    print(f"{n_stimuli} stimuli, {n_faults} faults in {seconds:.0f} s, client started again {run.restarts} times")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(weather.happened.items())))
    grown = _has_grown(run) if world.scale == "full" else False
    good = outcome.is_clean and not grown and not run.hangs
    return Tally(n_faults, n_faults if good else 0, outcome.lost, outcome.doubled, outcome.wrong, run.hangs)


def _has_grown(run: Soak) -> bool:
    assert run.memories is not None, "the calmer part was to be watched"
    grown = False
    for side, memory in zip(("server", "client"), run.memories, strict=True):
        slope = memory.slope(WARM_UP_S)
        assert slope.n_windows >= 18, "three minutes are too little to tell a slope"
        print(f"{side}: {slope}", flush=True)
        grown |= slope.high >= MAX_GROWTH_MIB_PER_MINUTE
    return grown


FAULTS: Final = (Fault("F31", "soak: a fault a second", soak, 120, 3600),)
