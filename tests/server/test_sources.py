"""No data becomes code in our packages: nothing is unpickled, evaluated or loaded by a loader that could."""

from pathlib import Path

import pytest

from tests.sources import findings

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared/stratoscope_wire", "services/stratoscope_server", "client/stratoscope")

PLANTED = (
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "from cloudpickle import loads as read",
    "import dill.session",
    "import marshal",
    "import shelve",
    'importlib.import_module("pickle")',
    '__import__("pickle")',
    "torch.load(path)",
    "torch.load(path, weights_only=True)",
    "from torch import load\nload(path)",
    "import torch as t\nt.load(path)",
    "joblib.load(path)",
    "eval(text)",
    "exec(text)",
    'compile(text, "x", "exec")',
    "yaml.load(text)",
    "yaml.load(text, yaml.Loader)",
    "yaml.load(text, Loader=yaml.UnsafeLoader)",
    "class Mine(yaml.Loader): ...\nyaml.load(text, Mine)",
    "from yaml import load\nload(text)",
    "yaml.unsafe_load(text)",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "import numpy\nnumpy.load(path, allow_pickle=chosen)",
    "socket.recv_pyobj()",
    "np.save(path, array, allow_pickle=True)",
    "AutoModel.from_pretrained(path, trust_remote_code=True)",
    "AutoModel.from_pretrained(path, trust_remote_code=wanted)",
    "subprocess.run(command, shell=True)",
    "os.system(command)",
)
HARMLESS = (
    "yaml.safe_load(text)",
    "yaml.load(text, yaml.SafeLoader)",
    "yaml.load(text, Loader=yaml.CSafeLoader)",
    "class Strict(yaml.SafeLoader): ...\nyaml.load(text, Strict)",
    "np.load(path, allow_pickle=False)",
    "AutoModel.from_pretrained(path, trust_remote_code=False)",
    "model.eval()",
    "re.compile(text)",
    "subprocess.run(command)",
    "json.loads(text)",
    "# pickle.loads(text)",
    "'eval(text)'",
)


@pytest.mark.parametrize("source", PLANTED)
def test_what_could_run_data_as_code_is_found(source: str) -> None:
    lines = f"first = 1\n{source}\n"
    found = findings(lines)
    assert found
    assert all(2 <= finding.line <= lines.count("\n") for finding in found)


@pytest.mark.parametrize("source", HARMLESS)
def test_what_cannot_is_not_found(source: str) -> None:
    assert findings(source) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_our_packages_hold_nothing_of_the_kind(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert len(modules) > 5
    found = {str(path.relative_to(ROOT)): findings(path.read_text(encoding="utf-8")) for path in modules}
    assert {path: of_module for path, of_module in found.items() if of_module} == {}
