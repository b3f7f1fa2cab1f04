"""What a checkpoint's folder may hold, and that its whole content is in the fingerprint."""

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stratoscope_server.engines.pretrained.source import Source, resolve_source
from stratoscope_server.engines.torch import ModelRefusedError
from stratoscope_server.engines.torch.architectures import FAMILIES
from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_wire import ModelCard

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolve(model: Path | str, *, revision: str | None = None, sums: Path | None = None) -> Source:
    return resolve_source(str(model), revision, Path("/nowhere"), supported=FAMILIES, sums=sums)


def card_of(model: Path | str, revision: str | None = None) -> ModelCard:
    return load_runner(str(model), revision=revision, dtype="float32", device="cpu", cache_dir=Path("/nowhere")).card


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A good model, to be spoilt."""
    copy = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    resolve(copy)
    return copy


@pytest.fixture
def snapshot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same model in a cache of the hub, laid out as the hub's own client does: every file a link to a blob."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.mark.parametrize("name", ["modeling_llama.py", "kernel.so", "modeling_llama.pyc"])
def test_a_folder_with_code_in_it_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_text("raise SystemExit('run')")
    with pytest.raises(ModelRefusedError, match=f"holds code \\({name}\\)"):
        resolve(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "preprocessor_config.json"])
def test_a_config_that_asks_for_code_is_refused_wherever_it_says_so(name: str, folder: Path) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, "inner": {"auto_map": {"AutoModel": "evil.Model"}}}))
    with pytest.raises(ModelRefusedError, match=f"{name} asks for code from the checkpoint"):
        resolve(folder)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_beside_the_weights_is_never_read(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists()
    sprung.unlink()
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(trap)
    card_of(folder)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(
        ModelRefusedError, match=f"{name} is a link that leads out of the model's folder, to {elsewhere}"
    ):
        resolve(folder)


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    before = resolve(folder)
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    assert resolve(folder) == before


def test_the_links_of_a_hub_snapshot_are_followed_and_no_others(snapshot: Path, tmp_path: Path) -> None:
    assert (snapshot / "config.json").is_symlink()
    for model, revision in ((snapshot, None), ("acme/tiny", COMMIT)):
        assert resolve(model, revision=revision).contents.startswith("sha256:")
    outside = tmp_path / "outside.json"
    shutil.copy(snapshot / "config.json", outside)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(outside)
    for model, revision in ((snapshot, None), ("acme/tiny", COMMIT)):
        with pytest.raises(ModelRefusedError, match=r"config\.json is a link that leads out"):
            resolve(model, revision=revision)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "shards/model.safetensors", "model.bin"])
def test_an_index_that_names_a_file_elsewhere_is_refused(name: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    resolve(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
    with pytest.raises(ModelRefusedError, match="no safetensors file of its own folder"):
        resolve(folder)


def test_a_branch_is_served_at_the_commit_it_points_to_and_that_is_said(
    snapshot: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert snapshot.exists()
    for revision, words in (
        ("main", "where revision 'main' points now"),
        (None, "where its default branch points now"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert resolve("acme/tiny", revision=revision).revision == COMMIT
        assert words in caplog.text
        assert f"give --revision {COMMIT}" in caplog.text
    caplog.clear()
    resolve("acme/tiny", revision=COMMIT)
    assert caplog.text == ""


SPOILT: dict[str, Callable[[Path], object]] = {
    "config": lambda folder: edit(folder / "config.json", rms_norm_eps=1e-4),
    "weights": lambda folder: nudge(folder / "model.safetensors"),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "tokenizer": lambda folder: edit(folder / "tokenizer.json", version="1.1"),
}


def edit(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    # A link of the cache is replaced by what it leads to, as somebody who edits a snapshot would.
    path.unlink()
    path.write_text(json.dumps(content))


def nudge(path: Path) -> None:
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1e-3
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("what", ["config", "weights", "chat template"])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_the_fingerprint_tells_another_content_from_the_same_name_and_commit(
    what: str, where: str, folder: Path, snapshot: Path
) -> None:
    at, model, revision = (folder, str(folder), None) if where == "folder" else (snapshot, "acme/tiny", COMMIT)
    before = card_of(model, revision)
    assert card_of(model, revision).fingerprint == before.fingerprint
    SPOILT[what](at)
    after = card_of(model, revision)
    assert after.model == before.model
    assert (after.revision == before.revision) is (where == "hub")
    assert after.versions["checkpoint"] != before.versions["checkpoint"]
    assert after.fingerprint != before.fingerprint


def sums_of(folder: Path, path: Path) -> Path:
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("what", SPOILT)
def test_a_checkpoint_that_differs_from_the_list_of_hashes_is_refused_by_file(
    what: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    sums = sums_of(folder, tmp_path / "sums")
    assert resolve(folder, sums=sums) == resolve(folder)
    SPOILT[what](folder)
    with pytest.raises(ModelRefusedError, match=r"has SHA-256 [0-9a-f]{64}; .*sums expects"):
        resolve(folder, sums=sums)


def test_a_file_that_is_not_in_the_list_of_hashes_is_refused(folder: Path, tmp_path: Path) -> None:
    sums = sums_of(folder, tmp_path / "sums")
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")
    with pytest.raises(ModelRefusedError, match=r"more\.safetensors of the model is not in the list"):
        resolve(folder, sums=sums)


def test_a_list_of_hashes_that_cannot_be_read_is_refused_by_line(folder: Path, tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    sums.write_text("abc  config.json\n")
    with pytest.raises(ModelRefusedError, match=r"line 1 of .* as sha256sum writes it"):
        resolve(folder, sums=sums)
    with pytest.raises(ModelRefusedError, match="cannot read the list of hashes"):
        resolve(folder, sums=tmp_path / "absent")
