"""Nothing that comes from outside becomes code: in the sources, at run time, and in a model's folder."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
from safetensors.numpy import save_file

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.synthetic import load_engine
from stratoscope_server.settings import Settings
from tests.conftest import running_server
from tests.faults.fault import ROOT, Fault, World
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts
from tests.sources import findings

PACKAGES: Final = ("shared/stratoscope_wire", "services/stratoscope_server", "client/stratoscope")

BAD_SOURCES: Final = (
    "import pickle",
    "from cloudpickle import loads",
    "import torch\ntorch.load('x')",
    "from torch import load as read\nread('x')",
    "import torch as t\nt.load('x')",
    "eval('1')",
    "import builtins\nbuiltins.exec('1')",
    "import yaml\nyaml.load(text, yaml.Loader)",
    "socket.recv_pyobj()",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "import marshal",
)
"""What the gate must find, or it would guard nothing."""


def nothing_unpickles(_: World) -> Tally:
    verdicts = Verdicts()
    for source in BAD_SOURCES:
        verdicts.judge(bool(findings(source)), f"the gate lets through: {source!r}")
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 100
    for path in modules:
        found = findings(path.read_text(encoding="utf-8"))
        verdicts.judge(not found, f"{path}: {found}")
    return verdicts.tally


class Exploit:
    """Would call `print` if anything unpickled it."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("exploited",)


def clients_bytes_are_never_unpickled(world: World) -> Tally:
    seen: list[str] = []
    # An audit hook cannot be taken away again; this process ends with the fault.
    sys.addaudithook(lambda event, details: seen.append(str(details)) if event == "pickle.find_class" else None)
    pickle.loads(pickle.dumps(Exploit()))
    assert seen, "the hook does not see an unpickled class"
    verdicts = Verdicts()
    with running_server(load_engine, Settings(engine="synthetic", port=0)) as url:
        seen.clear()
        for body, headers in _pickles(world.pick(50, 500)):
            answer = httpx2.post(f"{url}/v1/activations", content=body, headers=headers)
            verdicts.judge(answer.status_code in (200, 400, 422) and not seen, f"{answer.status_code}, {seen}")
    return verdicts.tally


def _pickles(n: int) -> list[tuple[bytes, dict[str, str]]]:
    exploit = pickle.dumps(Exploit())
    good = {"stimuli": [{"id": "s", "text": "A church"}]}
    bodies = [
        exploit,
        pickle.dumps(good),
        json.dumps({"stimuli": [{"id": "s", "text": exploit.decode("latin-1")}]}).encode(),
        json.dumps({**good, "capture": {"sites": [exploit.decode("latin-1")]}}).encode(),
        json.dumps({**good, "__reduce__": ["os.system", ["true"]]}).encode(),
        json.dumps(good).encode(),
    ]
    kinds = ("application/json", "application/octet-stream", "application/x-python-pickle", "application/cloudpickle")
    return [(bodies[i % len(bodies)], {"Content-Type": kinds[i % len(kinds)]}) for i in range(n)]


def bad_checkpoints_are_refused(world: World) -> Tally:
    verdicts = Verdicts()
    good = _checkpoint(world.folder / "good")
    source = resolve_source(str(good), None, world.folder, supported=["llama"])
    assert source.folder == good
    for name, spoil in SPOILT.items():
        folder = shutil.copytree(good, world.folder / name.replace(" ", "-"))
        spoil(folder)
        verdicts.judge(_is_refused(folder, source.revision, world), f"a checkpoint with {name} is served")
    verdicts.judge("torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized(), "CUDA was started")
    return verdicts.tally


def _is_refused(folder: Path, good_revision: str, world: World) -> bool:
    """Whether it is refused, or at least cannot be taken for the good one."""
    try:
        source = resolve_source(str(folder), None, world.folder, supported=["llama"])
    except ModelRefusedError:
        return True
    return folder.name == "altered-weights" and source.revision != good_revision


def _checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"weight": np.zeros(8, np.float32)}, folder / "model.safetensors")
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit()))


def _link_out(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / "outside.safetensors")
    weights.symlink_to(folder.parent / "outside.safetensors")


def _alter(folder: Path) -> None:
    save_file({"weight": np.ones(8, np.float32)}, folder / "model.safetensors")


SPOILT: Final[dict[str, Callable[[Path], object]]] = {
    "pickled weights only": _only_pickled,
    "code for the model": lambda folder: _edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"}),
    "code for the tokenizer": lambda folder: _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "e.T"}),
    "a Python file": lambda folder: (folder / "modeling_evil.py").write_text("import os"),
    "altered weights": _alter,
    "weights linked from outside": _link_out,
    "a config that is no object": lambda folder: (folder / "config.json").write_text("[]"),
    "an unknown architecture": lambda folder: _edit(folder / "config.json", model_type="evil"),
}

FAULTS: Final = (
    Fault("S1", "what turns data into code is not in our packages", nothing_unpickles),
    Fault("S2", "pickles sent by clients", clients_bytes_are_never_unpickled),
    Fault("S4", "checkpoints that bring code or are not what they were", bad_checkpoints_are_refused),
)
