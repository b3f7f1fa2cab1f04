"""Keys of the campaign's servers."""

from pathlib import Path
from typing import Final

import httpx2

from tests.faults.fault import World
from tests.faults.processes import ServerProcess

GOOD_KEY: Final = "0123456789abcdef0123456789abcdef"
AUTHORIZED: Final = {"Authorization": f"Bearer {GOOD_KEY}"}


def write_keys(folder: Path, *more: str) -> Path:
    """Write a key file and return its path."""
    path = folder / "keys"
    path.write_text("\n".join(["# keys of the campaign", GOOD_KEY, *more]) + "\n", encoding="utf-8")
    return path


class KeyedServer(ServerProcess):
    """The server command with a key, which is sent when it is asked whether it is ready."""

    def __init__(self, world: World, *flags: str) -> None:
        super().__init__(world, "--api-key-file", str(write_keys(world.folder)), *flags)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", headers=AUTHORIZED, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False
