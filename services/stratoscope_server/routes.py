"""What the routes of an app ask for. `python -m stratoscope_server.routes` prints the table of SECURITY.md."""

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from fastapi import FastAPI
from starlette.routing import BaseRoute

from stratoscope_server.auth import KeyRing

OPEN: Final = frozenset({"/healthz"})
"""Paths that ask for no key. Any other route without one stops the server from starting."""


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield every route, those of included routers too."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from routes_of(included.routes)


def asks_for_key(route: BaseRoute) -> bool:
    """Tell whether a route has a `KeyRing` among its dependencies; what has no dependencies, as a mount, has none."""
    dependant = getattr(route, "dependant", None)
    return dependant is not None and any(isinstance(needed.call, KeyRing) for needed in dependant.dependencies)


def refuse_open_routes(app: FastAPI) -> None:
    """Raise if a route asks for no key and is not one of `OPEN`.

    Raises
    ------
    RuntimeError
        With the path of the route.
    """
    for route in routes_of(app.routes):
        path = getattr(route, "path", None)
        if path not in OPEN and not asks_for_key(route):
            raise RuntimeError(f"route {path} asks for no key: put it on the guarded router, or name it in routes.OPEN")


def table(app: FastAPI) -> str:
    """Return method, path, key and purpose of every route as a Markdown table."""
    lines = ["| method | path | needs a key | what it is |", "|---|---|---|---|"]
    for route in routes_of(app.routes):
        methods = ", ".join(sorted(getattr(route, "methods", None) or ()))
        needs = "yes" if asks_for_key(route) else "no"
        lines.append(f"| {methods} | `{getattr(route, 'path', '')}` | {needs} | {getattr(route, 'summary', '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    # The app imports this module.
    from stratoscope_server.app import create_app
    from stratoscope_server.engines.synthetic import load_engine
    from stratoscope_server.settings import Settings
    from stratoscope_server.station import Station

    app = create_app(Station(lambda: load_engine(None), lambda: None), Settings(engine="synthetic"))
    sys.stdout.write(table(app))


if __name__ == "__main__":
    main()
