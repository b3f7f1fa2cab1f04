"""Settings of a server: one frozen object, made once from flags and the environment."""

import argparse
import difflib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stratoscope_server.engines.protocol import DEFAULT_STALL_SECONDS
from stratoscope_server.memory import usable_memory
from stratoscope_wire import Limits, ModelCard

PREFIX: Final = "STRATOSCOPE_"

CLIENT_VARIABLES: Final = frozenset({"STRATOSCOPE_BASE_URL", "STRATOSCOPE_API_KEY", "STRATOSCOPE_CA_FILE"})
"""Variables of the same prefix that the client reads; here they mean nothing."""

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class SettingsError(ValueError):
    """A flag or variable is unknown or has a value that cannot be used."""


class Settings(BaseModel):
    """Everything a deployer can set. A field ``max_stimuli`` is ``--max-stimuli`` and ``STRATOSCOPE_MAX_STIMULI``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["torch", "vllm", "synthetic"] = Field("torch", description="what runs the model")
    model: str = Field("smollm2-135m", description="the embedded model, a Hugging Face id, or a local folder")
    revision: str | None = Field(None, description="commit of a Hugging Face id")
    checkpoint_sha256: Path | None = Field(
        None, description="a list written by sha256sum that config, weights and tokenizer must agree with"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="type to compute in; auto: checkpoint's")
    device: str = Field(
        "auto", description="cpu, cuda, cuda:1 ...; cuda:0,cuda:1 shares the layers; auto: a GPU if any"
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratoscope",
        description="where the embedded model is kept once converted",
    )
    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback a key is required")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0: a free one")
    api_key_file: Path | None = Field(None, description="file of accepted API keys, one per line")
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate to speak TLS with")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key")
    log_format: Literal["text", "json"] = Field("text", description="how the log is written: text, or JSON lines")
    random_weights: Annotated[int, Field(ge=0)] | None = Field(
        None, description="torch: serve an untrained twin of the model, its weights drawn with this seed"
    )
    plants: Path | None = Field(
        None, description="synthetic: a JSON file of facts to plant, see docs/your-own-study.md"
    )
    max_batch_tokens: Positive | None = Field(None, description="tokens per forward pass; none: torch 1024, vllm 2048")
    tensor_parallel_size: Positive = Field(1, description="vllm: GPUs that share each layer")
    executor: Literal["mp", "ray"] = Field("mp", description="vllm: mp on one host, ray over several")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="vllm: share of each GPU's memory to use"
    )
    ring_bytes: Positive = Field(2 << 30, description="vllm: shared memory in which rows wait for their reader")
    stall_seconds: Seconds = Field(
        DEFAULT_STALL_SECONDS, description="the engine counts as dead once it owes work and gives no sign for so long"
    )
    max_header_bytes: Positive = Field(16 << 10, description="bytes of a request's headers")
    max_headers: Positive = Field(64, description="headers of a request")
    max_url_bytes: Positive = Field(8 << 10, description="bytes of a request's path and query")
    max_body_bytes: Positive = Field(8 << 20, description="bytes of a request body")
    max_json_depth: Positive = Field(8, description="objects and arrays inside one another in a request body")
    max_json_values: Positive = Field(98_304, description="values in a request body, each token id among them")
    max_stimuli: Positive = Field(256, description="stimuli per request")
    max_characters_per_text: Positive = Field(49_152, description="characters per text, checked before tokenising")
    max_tokens_per_text: Positive = Field(8192, description="tokens per text; never above the model's own length")
    max_tokens_per_request: Positive = Field(65_536, description="tokens per request")
    max_response_bytes: Positive = Field(4 << 30, description="bytes of activations per answer, computed exactly")
    max_bytes_in_flight: Positive = Field(
        default_factory=lambda: usable_memory() // 4,
        description="bytes of all answers waited for or being sent; by default a quarter of the memory",
    )
    max_running: Positive = Field(4, description="requests that are computed at the same time")
    max_queued: Positive = Field(16, description="requests that wait for their turn")
    max_queued_per_key: Positive | None = Field(
        None,
        description="of them, those of one API key; none: half of the queue, all of it if there are not several keys",
    )
    max_queued_tokens: Positive = Field(262_144, description="tokens of the requests that wait")
    max_connections: Positive = Field(64, description="connections open at the same time")
    receive_seconds: Seconds = Field(15, description="for a whole request to arrive")
    keep_alive_seconds: Seconds = Field(75, description="for an idle connection")
    queue_seconds: Seconds = Field(120, description="for a request's turn to come")
    first_batch_seconds: Seconds = Field(120, description="for the engine's first rows, from a request's turn")
    between_batches_seconds: Seconds = Field(60, description="for the engine's next rows")
    write_stall_seconds: Seconds = Field(60, description="for a client that takes none of the bytes sent to it")
    request_seconds: Seconds = Field(1800, description="for a whole request")
    drain_seconds: Seconds = Field(60, description="for running requests to end once the server was told to stop")

    @model_validator(mode="after")
    def _beyond_loopback_needs_a_key(self) -> Self:
        if not _is_loopback(self.host) and self.api_key_file is None:
            raise ValueError(f"host {self.host} can be reached from other machines: give --api-key-file as well")
        return self

    @model_validator(mode="after")
    def _tls_needs_both_files(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = (
                ("--tls-key", "--tls-certificate")
                if self.tls_certificate is None
                else ("--tls-certificate", "--tls-key")
            )
            raise ValueError(f"{given} is given without {missing}: TLS needs both files")
        return self

    @model_validator(mode="after")
    def _of_one_engine(self) -> Self:
        if self.checkpoint_sha256 is not None and self.engine == "synthetic":
            raise ValueError("--checkpoint-sha256 is given, but the synthetic engine loads no checkpoint: leave it out")
        for name, engine in (("random_weights", "torch"), ("plants", "synthetic")):
            if getattr(self, name) is not None and self.engine != engine:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is of the engine {engine}, not of {self.engine}: leave it out")
        return self

    @classmethod
    def from_args(cls, args: Sequence[str], environ: Mapping[str, str]) -> Self:
        """Make settings from command-line flags, then variables, then defaults.

        Raises
        ------
        SettingsError
            If a flag or a ``STRATOSCOPE_*`` variable is unknown, or a value cannot be used.
        """
        given = _from_environ(environ, cls) | _from_flags(args, cls)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError("\n".join(_explain(fault["loc"], fault["msg"]) for fault in error.errors())) from None

    def queue_share(self, n_keys: int) -> int:
        """Return how many requests of one of so many API keys may wait."""
        return self.max_queued_per_key or (self.max_queued if n_keys < 2 else max(1, self.max_queued // 2))

    def limits(self, card: ModelCard, n_keys: int, max_stimulus_bytes: int | None) -> Limits:
        """Return the limits in force for a model, a number of API keys, and what an engine can hold."""
        fields = {name: getattr(self, name, None) for name in Limits.model_fields}
        return Limits(
            **fields
            | {
                "max_tokens_per_text": min(self.max_tokens_per_text, card.max_tokens),
                "max_response_bytes": min(self.max_response_bytes, self.max_bytes_in_flight),
                "max_stimulus_bytes": max_stimulus_bytes,
                "max_queued_per_key": self.queue_share(n_keys),
            }
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _explain(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else ""
    flag = f"--{name.replace('_', '-')} ({PREFIX}{name.upper()}): " if name else ""
    return flag + message.removeprefix("Value error, ")


def _from_environ(environ: Mapping[str, str], settings: type[Settings]) -> dict[str, str]:
    known = {PREFIX + name.upper(): name for name in settings.model_fields}
    mine = {key: value for key, value in environ.items() if key.startswith(PREFIX) and key not in CLIENT_VARIABLES}
    for key in mine:
        if key not in known:
            raise SettingsError(f"unknown variable {key}{_suggest(key, known)}")
    return {known[key]: value for key, value in mine.items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _from_flags(args: Sequence[str], settings: type[Settings]) -> dict[str, str]:
    parser = _Parser(
        prog="stratoscope serve",
        description="Serve the hidden states of a language model. Every flag is also a STRATOSCOPE_* variable.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in settings.model_fields.items():
        choices = get_args(field.annotation) if name in ("engine", "dtype", "executor", "log_format") else None
        default = field.get_default(call_default_factory=True, validated_data={})
        note = f"{field.description} [{'none' if default is None else default}]"
        parser.add_argument(f"--{name.replace('_', '-')}", choices=choices, help=note, metavar=None if choices else "X")
    given, unknown = parser.parse_known_args(args)
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in settings.model_fields]
        raise SettingsError(f"unknown argument {unknown[0]}{_suggest(unknown[0], flags)}")
    return dict(vars(given))


def _suggest(word: str, known: Mapping[str, str] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
