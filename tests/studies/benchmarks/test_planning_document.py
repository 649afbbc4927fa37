"""The committed document is what the generator makes, and its JSON is what the planner says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.benchmarks import planning
from studies.benchmarks.planning import DOCUMENT, RESULTS, write_document
from studies.results import Results

LAYOUTS = Results.read(RESULTS / "layouts.json")
AGAIN = "run python studies/benchmarks/planner.py table"


def test_the_committed_text_is_made_of_the_committed_json(tmp_path: Path) -> None:
    write_document(LAYOUTS, tmp_path / "planning.md")
    assert DOCUMENT.read_text(encoding="utf-8") == (tmp_path / "planning.md").read_text(encoding="utf-8"), AGAIN


def test_every_cell_is_there_once() -> None:
    places = [(cell["model"], cell["recipe"], cell["gpus"]) for cell in LAYOUTS.runs]
    assert places == list(planning.all_cells())


@pytest.mark.parametrize("place", [("Qwen2.5-7B", "SoLo-DPO", 8), ("Qwen2.5-72B", "Long-DPO", 64)])
def test_the_committed_json_is_what_the_planner_says(place: tuple[str, str, int]) -> None:
    committed = {(c["model"], c["recipe"], c["gpus"]): c for c in LAYOUTS.runs}
    assert planning.make_cell(*place) == committed[place], AGAIN


def test_solopo_never_goes_less_far_than_vanilla() -> None:
    far = {(c["model"], c["recipe"], c["gpus"]): (c["longest"] or {"long": 0})["long"] for c in LAYOUTS.runs}
    for model in planning.MODELS:
        for gpus in planning.GPUS:
            assert far[model, "SoLo-DPO", gpus] >= far[model, "Long-DPO", gpus]
