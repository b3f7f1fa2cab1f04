"""Starting vLLM. The environment must be prepared before this module is imported: vLLM reads it when it is."""

import signal
from collections.abc import Mapping
from multiprocessing import resource_tracker
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensInput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.protocol import IntArray


def launch(arguments: Mapping[str, Any]) -> AsyncLLM:
    """Start the engine's processes and wait until the model is loaded.

    Raises
    ------
    ModelRefusedError
        If vLLM would use a model runner that is not supported, or cannot serve the model.
    """
    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.API_SERVER)
    if config.use_v2_model_runner:
        raise ModelRefusedError(
            "vLLM would use its V2 model runner for this model, with which the capture is not proved yet; only V1 is "
            "supported (VLLM_USE_V2_MODEL_RUNNER=0)"
        )
    # An interrupt from the terminal goes to every process of the group. Only the server may act on it: it drains.
    # Children inherit the mask of the thread that starts them; starting Python's resource tracker would lift it again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    except (RuntimeError, ValueError) as error:
        raise ModelRefusedError(f"vLLM cannot serve the model: {error}; its log has the cause") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tokens(token_ids: IntArray) -> TokensInput:
    """Return a prompt in vLLM's terms."""
    return TokensInput(type="token", prompt_token_ids=token_ids.tolist())


def prefill(extra_args: dict[str, Any] | None, *, may_read_cache: bool) -> SamplingParams:
    """Return the parameters of a request that is over after its prompt."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=not may_read_cache,
        extra_args=extra_args,
    )
