"""Sharing a model's layers among devices: the plan. Nothing here needs a GPU, and nothing here runs on one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from stratoscope_server.engines.pretrained.checkpoint import check_config
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.torch.architectures import FAMILIES, Family
from stratoscope_server.engines.torch.loading import find_devices
from stratoscope_server.engines.torch.placing import place
from stratoscope_server.engines.torch.runner import TorchRunner
from stratoscope_wire.sites import SITES
from tests.server.torch_engine.conftest import ask, run

GPUS = [torch.device("cuda", index) for index in range(2)]


def family_of(folder: Path) -> Family:
    return FAMILIES[check_config(folder / "config.json", FAMILIES)["model_type"]]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_tensor_has_one_place_and_blocks_stay_whole_and_in_order(
    architecture: str, tiny_folder: Callable[[str], Path]
) -> None:
    folder = tiny_folder(architecture)
    config, family = AutoConfig.from_pretrained(folder), family_of(folder)
    plan = place(config, family, GPUS)
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    for name in [name for name, _ in (*model.named_parameters(), *model.named_buffers())]:
        assert sum(name == key or name.startswith(f"{key}.") for key in plan) == 1, name
    prefix = f"{family.language_model}." if family.language_model else ""
    places = [device.index for name, device in plan.items() if name.startswith(f"{prefix}{family.blocks}.")]
    assert len(places) > 1, "there are blocks to share"
    assert places == sorted(places)
    assert set(places) == {0, 1}
    assert plan[f"{prefix}{family.final_norm}"].index == 1


def test_shares_have_about_the_same_bytes() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=256, num_hidden_layers=40, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=8000,
    )  # fmt: skip
    plan = place(config, FAMILIES["llama"], GPUS)
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    block = sum(parameter.numel() for parameter in model.layers[0].parameters())
    embedding = model.embed_tokens.weight.numel()
    assert embedding > 5 * block, "the first device has more to hold than blocks"
    held = [0, 0]
    for name, parameter in model.named_parameters():
        held[next(device.index for key, device in plan.items() if name.startswith(f"{key}."))] += parameter.numel()
    assert abs(held[0] - held[1]) <= block


def test_more_devices_than_layers_are_refused() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=10)
    with pytest.raises(ModelRefusedError, match="2 devices are named for 1 layers; name at most 1"):
        place(config, FAMILIES["llama"], GPUS)


@pytest.mark.parametrize("devices", ["cpu,cpu", "cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "auto,auto"])
def test_several_devices_must_be_different_gpus(devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelRefusedError, match="different GPUs such as cuda:0,cuda:1"):
        find_devices(devices)
    assert find_devices("cuda:0, cuda:1") == tuple(GPUS)


def test_states_are_read_as_before_through_the_hooks_that_move_them(fresh_llama: TorchRunner) -> None:
    prompts = ask(fresh_llama, ["The owl sleeps", "A church and an organ", "The owl"])
    expected = run(fresh_llama, prompts)
    loaded = fresh_llama._loaded
    plan = dict.fromkeys(place(loaded.config, loaded.family, GPUS), "cpu")
    dispatch_model(loaded.module, plan, main_device="cpu", force_hooks=True)
    assert hasattr(loaded.module.get_submodule(f"{loaded.family.blocks}.1"), "_hf_hook"), "each block has its hook"
    for before, after in zip(expected, run(fresh_llama, prompts), strict=True):
        assert list(before) == list(after)
        assert len(before) > len(SITES)
        assert all((before[name] == after[name]).all() for name in before)


LOADING = """
import sys
from pathlib import Path
from types import SimpleNamespace
import transformers.models.llama.modeling_llama
from stratoscope_server.engines.torch.loading import load_model


def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


before = peak_mib()
model = load_model(SimpleNamespace(folder=Path(sys.argv[1]), name="large"), dtype=sys.argv[2], device="cpu")
states = sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
print(peak_mib() - before, states / 2**20)
"""


@pytest.mark.parametrize(("dtype", "times"), [("bfloat16", 1.15), ("float32", 1.75)])
def test_loading_holds_the_weights_once_and_never_the_unembedding(dtype: str, times: float, tmp_path: Path) -> None:
    """In another type than the checkpoint's, its own bytes, half as many, are held beside them."""
    config = AutoConfig.for_model(
        "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=60_000, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = model.to(torch.bfloat16)
    assert model.lm_head.weight.numel() > 0.25 * sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    command = [sys.executable, "-c", LOADING, str(tmp_path), dtype]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, weights = map(float, told.split())
    assert weights > 120, "large enough to be told from what loading takes anyway"
    assert peak < times * weights
