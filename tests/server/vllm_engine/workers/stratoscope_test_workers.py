"""Workers for tests: one that writes down what it does, one that can be broken, one with an oracle beside the capture.

vLLM imports them by name in its own processes.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratoscope_server.engines.vllm import recorder as recorder_module
from stratoscope_server.engines.vllm import runner_v1, taps
from stratoscope_server.engines.vllm import worker as worker_module
from stratoscope_server.engines.vllm.cpu_worker import CpuCaptureWorker
from stratoscope_server.engines.vllm.tracker import Tracker

CANARY = 0x7F


class WatchedWorker(CpuCaptureWorker):
    """Writes down every step, and breaks one guard at a time when told to."""

    def attach_capture(self) -> int:
        with self.reachable():
            n_bytes = super().attach_capture()
        self.steps: list[list[tuple[str, int, int]]] = []
        self.resumed = 0
        self.undo: list[Callable[[], None]] = []
        runner, listened = self.model_runner, self.recorder.on_step
        update = runner._update_states

        def on_step(step: Any) -> None:
            counts = zip(step.request_ids, step.starts.tolist(), step.counts.tolist(), strict=True)
            self.steps.append(list(counts))
            listened(step)

        def update_states(scheduler_output: Any) -> Any:
            self.resumed += len(scheduler_output.scheduled_cached_reqs.resumed_req_ids)
            return update(scheduler_output)

        self.patch(self.recorder, "on_step", on_step)
        self.patch(runner, "_update_states", update_states)
        self.undo.clear()
        return n_bytes

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Let what is attached now look up the recorder's methods each time, so that they can be replaced later."""
        attach, on_forward_end = taps.attach, runner_v1.on_forward_end

        def attach_late(model: Any, family: Any, n_layers: int, sink: Any) -> None:
            self.sink = sink
            attach(model, family, n_layers, lambda column, states: self.sink(column, states))

        with ExitStack() as patches:
            for name, value in (
                ("attach", attach_late),
                ("on_forward_end", lambda runner, _: on_forward_end(runner, lambda: self.recorder.on_forward_end())),
            ):
                patches.callback(setattr, worker_module, name, getattr(worker_module, name))
                setattr(worker_module, name, value)
            yield

    def report(self) -> str:
        """Tell, as JSON, and forget, the steps since the last report and how many requests were resumed."""
        told = json.dumps({"steps": self.steps, "resumed": self.resumed})
        self.steps, self.resumed = [], 0
        return told

    def patch(self, target: Any, name: str, value: Any) -> None:
        before = getattr(target, name)
        self.undo.append(lambda: setattr(target, name, before))
        setattr(target, name, value)

    def sabotage(self, name: str) -> None:
        """Take one guard out; ``none`` puts all back."""
        while self.undo:
            self.undo.pop()()
        if name != "none":
            getattr(self, f"break_{name}")()

    def break_canaries(self) -> None:
        """Fill the memory of a step with canaries before anything is written to it: no guard is gone by that."""
        staging = self.recorder._staging
        begin = staging.begin

        def begin_among_canaries(plan: Any) -> Any:
            gathers = begin(plan)
            for run in (run for staged in gathers for run in staged.runs):
                run.plain.view(torch.uint8).fill_(CANARY)
                run.pooled.view(torch.uint8).fill_(CANARY)
            return gathers

        self.patch(staging, "begin", begin_among_canaries)

    def break_canaries_unwritten(self) -> None:
        """Likewise, and do not write over them."""
        self.break_canaries()
        self.patch(self.recorder, "_copy", lambda _states, _staged, _run, _slot: None)

    def break_order(self) -> None:
        """Take the batch's rows in another order than the runner's."""
        listened = self.recorder.on_step

        def on_step(step: Any) -> None:
            n = len(step.request_ids)
            order = np.roll(np.arange(n), 1)
            ids = tuple(step.request_ids[i] for i in order)
            listened(dataclasses.replace(step, request_ids=ids, starts=step.starts[order], counts=step.counts[order]))

        self.patch(self.recorder, "on_step", on_step)

    def break_order_unchecked(self) -> None:
        """Likewise, with the check of the batch's tokens taken out too."""
        self.break_order()
        self.patch(recorder_module._Followed, "matches", lambda _self, _ids, _start: True)

    def break_residual(self) -> None:
        """Take a block's first output for the residual stream, without the half that is carried beside it."""
        listened = self.sink
        hidden: dict[str, torch.Tensor] = {}

        def on_states(column: str, states: torch.Tensor) -> None:
            site, _, layer = column.partition(".")
            if site == "mlp_out":
                hidden[layer] = states.clone()
            listened(column, hidden[layer] if site == "resid_post" else states)

        self.patch(self, "sink", on_states)

    def break_last_layer(self) -> None:
        """Take the last block's output behind the final norm."""
        listened = self.sink
        last = f"resid_post.{max(c.layer or 0 for c in self.recorder._columns)}"

        def on_states(column: str, states: torch.Tensor) -> None:
            if column != last:
                listened(column, states)
            if column == "final_norm":
                listened(last, states)

        self.patch(self, "sink", on_states)

    def break_memory(self) -> None:
        """Forget which positions have been taken."""
        take = Tracker.take

        def forgetful(tracker: Tracker, start: int, stop: int) -> Any:
            tracker._reached = min(tracker._reached, start)
            return take(tracker, start, stop)

        self.patch(Tracker, "take", forgetful)

    def break_contiguity(self) -> None:
        """Do not notice positions that are left out."""
        take = Tracker.take

        def blind(tracker: Tracker, start: int, stop: int) -> Any:
            tracker._reached = max(tracker._reached, start)
            return take(tracker, start, stop)

        self.patch(Tracker, "take", blind)

    def break_hook(self) -> None:
        """Let a tap miss a column."""
        listened = self.sink
        self.patch(self, "sink", lambda column, states: None if column == "attn_out.1" else listened(column, states))


class OracleWorker(CpuCaptureWorker):
    """Beside the capture, plain hooks that clone whole tensors, at other modules than the taps'."""

    def attach_capture(self) -> int:
        n_bytes = super().attach_capture()
        folder = Path(os.environ["STRATOSCOPE_ORACLE"])
        found: dict[str, Any] = {}
        n_steps = 0
        decoder = self.model_runner.model.model

        def keep(name: str, pick: Callable[[Any, Any], torch.Tensor]) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, args: Any, output: Any) -> None:
                found[name] = pick(args, output).clone().numpy()

            return hook

        def begin(_module: Any, args: Any, kwargs: Any) -> None:
            found.clear()
            given = {**dict(zip(("input_ids", "positions"), args, strict=False)), **kwargs}
            found.update(input_ids=given["input_ids"].clone().numpy(), positions=given["positions"].clone().numpy())

        def end(_module: Any, _args: Any, _output: Any) -> None:
            nonlocal n_steps
            np.savez(folder / f"{self.rank}-{n_steps:04d}.npz", **found)
            n_steps += 1

        self.model_runner.model.register_forward_pre_hook(begin, with_kwargs=True)
        decoder.embed_tokens.register_forward_hook(keep("embed", lambda _, out: out))
        for layer, block in enumerate(decoder.layers):
            block.self_attn.register_forward_hook(keep(f"attn_out.{layer}", lambda _, out: out))
            block.self_attn.o_proj.register_forward_hook(keep(f"heads.{layer}", lambda args, _: args[0]))
            block.mlp.register_forward_hook(keep(f"mlp_out.{layer}", lambda _, out: out))
            block.register_forward_hook(keep(f"resid_post.{layer}", lambda _, out: out[0] + out[1]))
        decoder.norm.register_forward_hook(keep("final_norm", lambda _, out: out[0]))
        self.model_runner.model.register_forward_hook(end)
        return n_bytes


class DistantWorker(CpuCaptureWorker):
    """Says, on every rank but the first, that it runs on another host than the server."""

    def host_key(self) -> int:
        return int(super().host_key()) + int(self.rank)
