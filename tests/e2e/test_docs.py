"""The documentation names things that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["lifecycle.md", "capture.md"])
def test_every_module_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 15
    places = [*ROOT.glob("*/strato*/**/*"), *ROOT.glob("tests/**/*.py")]
    for name in named:
        found = (ROOT / name).exists() or any(path.as_posix().endswith(f"/{name}") for path in places)
        assert found, name


def test_every_test_that_the_page_on_security_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 8
    for name in named:
        assert any(path.as_posix().endswith(f"/{name}") for path in ROOT.glob("tests/**/*.py")), name


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/lifecycle.md",
        "docs/wire.md",
        "docs/cli.md",
        "docs/capture.md",
        "docs/scale.md",
        "docs/deployment.md",
        "SECURITY.md",
        "docs/statistics.md",
        "docs/paper.md",
        "docs/your-own-study.md",
    ],
)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link
    assert links or page not in ("README.md", "docs/lifecycle.md")
