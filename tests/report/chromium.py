"""A page as a browser has it: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
REQUIRED = "TESTS_NEED_CHROMIUM"
"""Set where a missing browser is a fault and not a reason to skip, as in CI."""


@dataclass
class Opened:
    """A page that was loaded, with what it asked for and complained of meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def browse() -> Iterator[Browser]:
    """Start the browser; skips the test where there is none and none is required."""
    executable = next((path for path in map(shutil.which, NAMES) if path), None)
    if executable is None and not os.environ.get(REQUIRED):
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, width: int, dark: bool = False) -> Iterator[Opened]:
    """Load a page and wait until everything on it is there."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", is_mobile=width < 600
    )
    shown = Opened(context.new_page())
    shown.page.on("request", lambda request: shown.requests.append(request.url))
    shown.page.on("console", lambda message: shown.complaints.append(message.text))
    shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    shown.page.goto(path.as_uri())
    yield shown
    context.close()
