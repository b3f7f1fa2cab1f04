"""The embedded engine: a Hugging Face decoder on a CPU or a GPU, read through forward hooks."""

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.torch.engine import load_engine
from stratoscope_server.engines.torch.runner import TorchRunner

__all__ = [
    "ModelRefusedError",
    "TorchRunner",
    "load_engine",
]
