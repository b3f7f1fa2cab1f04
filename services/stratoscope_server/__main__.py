"""`stratoscope-server`: read the settings, load the engine, serve until told to stop."""

import os
import ssl
import sys
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from stratoscope_server.app import create_app
from stratoscope_server.connections import guarded
from stratoscope_server.engines.protocol import Engine
from stratoscope_server.logs import configure_logs
from stratoscope_server.settings import Settings, SettingsError
from stratoscope_server.station import Station
from stratoscope_server.stopping import FLUSH_SECONDS, DrainingServer
from stratoscope_server.tls import server_context
from stratoscope_wire.tracing import start_tracing

EXIT_FAILED = 1
EXIT_USAGE = 2
LONGEST_STOP_SECONDS = 60
"""For a server whose engine has failed."""


def main() -> None:
    """Run the server until a signal stops it; exits 1 if the model cannot be served, 2 on unusable settings."""
    try:
        settings = Settings.from_args(sys.argv[1:], os.environ)
        code = serve(settings)
    except SettingsError as error:
        _complain(str(error))
        sys.exit(EXIT_USAGE)
    if code == EXIT_FAILED:
        sys.stderr.flush()
        # Not sys.exit(): it would wait for the threads of an engine that hangs.
        os._exit(code)
    sys.exit(code)


def serve(settings: Settings, load: Callable[[], Engine] | None = None) -> int:
    """Serve until stopped and return the exit code.

    Parameters
    ----------
    load
        Builds the engine, in place of the one that the settings name.
    """
    configure_logs(settings.log_format)
    if fault := start_tracing("stratoscope-server", os.environ):
        _complain(fault)

    def stop() -> None:
        server.should_exit = True
        _end_anyway()

    station = Station(load or engine_loader(settings), stop)
    try:
        app = create_app(station, settings)
        server = make_server(app, settings)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    server.run()
    if station.failure is not None:
        _complain(f"the model cannot be served: {station.failure}")
        return EXIT_FAILED
    return 0 if server.started else EXIT_FAILED


def make_server(app: FastAPI, settings: Settings) -> DrainingServer:
    """Return the server of an app, with every deadline and cap on its connections.

    Raises
    ------
    ValueError
        If the files for TLS cannot be used.
    """
    tls = _tls_context(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        http=guarded(settings),  # type: ignore[arg-type]
        ws="none",
        h11_max_incomplete_event_size=settings.max_header_bytes,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    return DrainingServer(config, app.state.gate, settings.drain_seconds)


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return server_context(settings.tls_certificate, settings.tls_key)


def engine_loader(settings: Settings) -> Callable[[], Engine]:
    """Return a function that builds the engine; only it imports what the engine needs."""
    if settings.engine == "synthetic":
        from stratoscope_server.engines import synthetic
        from stratoscope_server.engines.plants import Plants

        try:
            plants = None if settings.plants is None else Plants.read(settings.plants)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return lambda: synthetic.load_engine(settings.max_batch_tokens, plants, settings.stall_seconds)
    try:
        if settings.engine == "vllm":
            return _vllm_loader(settings)
        from stratoscope_server.engines import torch
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the {settings.engine} engine needs the package {error.name!r}: "
            f"pip install 'stratoscope-server[{settings.engine}]'"
        ) from None
    return lambda: torch.load_engine(
        settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        max_batch_tokens=settings.max_batch_tokens,
        cache_dir=settings.cache_dir,
        random_weights=settings.random_weights,
        stall_seconds=settings.stall_seconds,
        checkpoint_sha256=settings.checkpoint_sha256,
    )


def _vllm_loader(settings: Settings) -> Callable[[], Engine]:
    from stratoscope_server.engines import vllm

    options = vllm.VllmOptions(**{name: getattr(settings, name) for name in vllm.VllmOptions.settings()})
    return lambda: vllm.load_engine(options)


def _end_anyway() -> None:
    """End the process even if stopping hangs: an engine that is dead must not keep a server that looks alive."""
    timer = threading.Timer(LONGEST_STOP_SECONDS, os._exit, [EXIT_FAILED])
    timer.daemon = True
    timer.start()


def _complain(message: str) -> None:
    sys.stderr.write(f"stratoscope-server: {message}\n")


if __name__ == "__main__":
    main()
