"""The manifest: derived, and no dearer than it is worth."""

import json
import time
from pathlib import Path

import pytest

from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.store import writer
from stratoscope.store.ledger import Ledger
from stratoscope.store.manifest import write_manifest
from tests.client.test_collect import SMALL, make_table


def test_it_is_not_written_for_every_shard_and_tells_of_all_at_the_end(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []

    def slow(run_dir: Path, ledger: Ledger) -> None:
        listed.append(len(ledger.shards()))
        time.sleep(0.1)
        write_manifest(run_dir, ledger)

    monkeypatch.setattr(writer, "write_manifest", slow)
    counts = collect(make_table(), tmp_path / "run", client, settings=SMALL)
    assert counts.shards > 2, "several shards are to be written within five seconds"
    assert listed == [0, counts.shards]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert len(manifest["shards"]) == counts.shards
