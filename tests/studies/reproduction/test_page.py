"""The page is what the generator makes of the results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_up_results import collected
from test_claims import as_the_paper_says

from solopo_nemo.runtime.errors import UserError
from studies.reproduction.claims import all_claims
from studies.reproduction.collected import Collected
from studies.reproduction.page import write_page

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    results = collected(as_the_paper_says)
    results.write(tmp_path)
    assert Collected.read(tmp_path) == results


@pytest.mark.slow
def test_the_page_shows_every_claim_method_and_figure(tmp_path: Path) -> None:
    results = collected(as_the_paper_says)
    results.write(tmp_path / "results")
    write_page(tmp_path / "results", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert all(claim.text in page for claim in all_claims(results))
    for title in ("starting model", "SFT-long", "Expand-Long-SimPO", "SoLo-ORPO, KL", "SoLo-DPO, both", "LongPO"):
        assert f"| {title} |" in page
    figures = sorted(path.name for path in (tmp_path / "results").glob("*.png"))
    names = ("accuracy", "alpha", "chosen-both", "depth", "run-time")
    assert figures == sorted(f"{name}{suffix}.png" for name in names for suffix in ("", "-dark"))
    assert all(f"results/{figure}" in page for figure in figures)


def test_a_part_of_the_results_makes_a_page_too(tmp_path: Path) -> None:
    results = collected(as_the_paper_says)
    kept = {name: results.runs["main"][name] for name in ("base", "solo-orpo")}
    Collected({"main": kept}, results.about).write(tmp_path)
    write_page(tmp_path, tmp_path / "page.md")
    assert "not measured" in (tmp_path / "page.md").read_text()


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"miniature.json: no file of such results"):
        write_page(tmp_path, tmp_path / "page.md")


@pytest.mark.slow
def test_the_published_page_is_what_the_published_results_make(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "reproduction", tmp_path / "reproduction")
    write_page(tmp_path / "reproduction", tmp_path / "reproduction.md")
    assert (tmp_path / "reproduction.md").read_text() == (DOCS / "reproduction.md").read_text()
