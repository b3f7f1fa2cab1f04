"""The manifest: a summary of a run for people and other programs. Derived from the ledger, never read back."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from stratoscope.store.disk import disk_faults
from stratoscope.store.durable import replace_file
from stratoscope.store.ledger import Ledger, now

FILE_NAME: Final = "manifest.json"
RECORDED: Final = ("stratoscope", "stratoscope-wire", "numpy", "pyarrow", "polars")


def installed_versions() -> dict[str, str]:
    """Return the versions of what writes a run."""
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def write_manifest(run_dir: Path, ledger: Ledger) -> None:
    """Derive the manifest from the ledger.

    Raises
    ------
    StorageError
        If the disk is full or fails; the former manifest is then still there.
    """
    measurement = ledger.measurement()
    assert measurement is not None
    counts = ledger.state_counts()
    shards = ledger.shards()
    content = {
        "fingerprint": measurement.card.fingerprint,
        "model": measurement.card.model_dump(mode="json"),
        "capture": measurement.capture.model_dump(mode="json"),
        **measurement.facts,
        **ledger.provenance(),
        "updated": now(),
        "stimuli": {state: counts.get(state, 0) for state in ("done", "todo", "failed")},
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [{"name": s.name, "sha256": s.sha256, "bytes": s.bytes, "rows": s.rows} for s in shards],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with disk_faults(run_dir / FILE_NAME, len(text.encode())):
        replace_file(run_dir / FILE_NAME, lambda file: file.write(text.encode()))
