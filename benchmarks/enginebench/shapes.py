"""Models of the shape of real ones, with random weights: made on the spot, so that no hub is needed.

The numbers are those of the ``config.json`` of Meta's checkpoints on Hugging Face. The tokenizer is a small one of its
own, whose ids lie in the model's vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from enginebench.workload import Shape

_LLAMA_3: Final = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
}
_ROPE: Final = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-3.2-3b": {
        **_LLAMA_3,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
        "rope_parameters": {**_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rope_parameters": {**_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
    },
    # Of no real model: small enough to try everything out on a CPU.
    "tiny": {
        **_LLAMA_3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 16384,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_parameters": {**_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
        "vocab_size": 512,
    },
}


def provide(shape: str, folder: Path, device: str) -> Path:
    """Make the checkpoint of a shape in a folder, in bfloat16 safetensors, unless it is there already.

    Parameters
    ----------
    shape
        One of `SHAPES`.
    folder
        Where checkpoints are kept; 6.4 GB and 16 GB for the two real shapes.
    device
        On which weights are drawn.
    """
    path = folder / shape
    done = path / "done.json"
    if not done.exists():
        path.mkdir(parents=True, exist_ok=True)
        _tokenizer().save_pretrained(path)
        _model(SHAPES[shape], device).save_pretrained(path)
        # Last: what was interrupted is made again.
        done.write_text(json.dumps({"shape": shape, "torch": torch.__version__}))
    return path


def _model(numbers: Mapping[str, Any], device: str) -> Any:
    config = transformers.LlamaConfig(**numbers)
    with torch.device(device):
        build: Any = transformers.AutoModelForCausalLM.from_config
        model = build(config, dtype=torch.bfloat16)
    random = torch.Generator(device).manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0, generator=random)
            # Norms matter only if they are not all ones.
            parameter.mul_(0.2).add_(1.0) if parameter.ndim == 1 else parameter.mul_(config.initializer_range)
    return model


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(Shape(64, 60, 60).texts(0), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    build: Any = transformers.PreTrainedTokenizerFast
    return build(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
