"""What MkDocs does not look at: the links of README.md, and pictures that a page names in HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shown import DOCS, ROOT

LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
PICTURE = re.compile(r"<(?:img|source)[^>]*\bsrc(?:set)?=\"([^\"]+)\"")


def missing(page: Path, pattern: re.Pattern[str]) -> list[str]:
    return [link for link in pattern.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]


def test_links_of_the_readme() -> None:
    assert len(LINK.findall((ROOT / "README.md").read_text())) > 5
    assert not missing(ROOT / "README.md", LINK)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_pictures_of_a_page(page: Path) -> None:
    assert not missing(page, PICTURE)


def test_a_missing_one_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('[a](https://b.c) [here](page.md) [d](e/f.md#g) <img src="page.md"><source srcset="h.png">')
    assert missing(page, LINK) == ["e/f.md"]
    assert missing(page, PICTURE) == ["h.png"]
