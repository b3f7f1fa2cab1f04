"""An oracle beside the capture: plain hooks that clone whole tensors in every step, at other modules than the taps'."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = "CAPTURE_ORACLE"
"""Variable that says where each step is written, one file per rank."""


class Oracle:
    """Comes before a capturing worker in a class's bases."""

    model_runner: Any
    rank: int

    def attach_capture(self) -> int:
        n_bytes: int = super().attach_capture()  # type: ignore[misc]
        folder = Path(os.environ[FOLDER])
        found: dict[str, torch.Tensor] = {}
        n_steps = 0
        model = self.model_runner.model
        decoder = model.model

        def keep(name: str, pick: Callable[[Any, Any], torch.Tensor]) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, args: Any, output: Any) -> None:
                found[name] = pick(args, output).clone()

            return hook

        def begin(_module: Any, args: Any, kwargs: Any) -> None:
            found.clear()
            given = {**dict(zip(("input_ids", "positions"), args, strict=False)), **kwargs}
            found.update(input_ids=given["input_ids"].clone(), positions=given["positions"].clone())

        def end(_module: Any, _args: Any, _output: Any) -> None:
            nonlocal n_steps
            on_host = {name: states.cpu().contiguous() for name, states in found.items()}
            save_file(on_host, folder / f"{self.rank}-{n_steps:04d}.safetensors")
            n_steps += 1

        model.register_forward_pre_hook(begin, with_kwargs=True)
        decoder.embed_tokens.register_forward_hook(keep("embed", lambda _, out: out))
        for layer, block in enumerate(decoder.layers):
            block.self_attn.register_forward_hook(keep(f"attn_out.{layer}", lambda _, out: out))
            block.self_attn.o_proj.register_forward_hook(keep(f"heads.{layer}", lambda args, _: args[0]))
            block.mlp.register_forward_hook(keep(f"mlp_out.{layer}", lambda _, out: out))
            block.register_forward_hook(keep(f"resid_post.{layer}", lambda _, out: out[0] + out[1]))
        decoder.norm.register_forward_hook(keep("final_norm", lambda _, out: out[0]))
        model.register_forward_hook(end)
        return n_bytes
