"""The documentation names things that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_module_named_in_the_lifecycle_exists() -> None:
    text = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 15
    for name in named:
        found = (ROOT / name).exists() or any(
            path.as_posix().endswith(f"/{name}") for path in ROOT.glob("*/strato*/**/*")
        )
        assert found, name


@pytest.mark.parametrize(
    "page", ["README.md", "docs/lifecycle.md", "docs/wire.md", "docs/cli.md", "docs/statistics.md"]
)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link
    assert links or page != "README.md"
