"""The committed document is what the generator makes, and its JSON is what the planner says now."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from zygote import forking

from studies.benchmarks import planning, public
from studies.benchmarks.planning import DOCUMENT, FORMULAS, RESULTS, TRACED, write_document
from studies.results import Results

LAYOUTS, PUBLIC = (Results.read(RESULTS / name) for name in ("layouts.json", "public.json"))
CELLS = {planning.place(cell): cell for cell in LAYOUTS.runs}
AGAIN = "run python studies/benchmarks/planner.py table"


def test_the_committed_text_is_made_of_the_committed_json(tmp_path: Path) -> None:
    write_document(LAYOUTS, PUBLIC, tmp_path / "planning.md")
    assert DOCUMENT.read_text(encoding="utf-8") == (tmp_path / "planning.md").read_text(encoding="utf-8"), AGAIN


def test_every_cell_is_there_once() -> None:
    assert [*CELLS] == list(planning.all_cells())


@pytest.mark.parametrize("place", [("Qwen2.5-7B", "SoLo-DPO", 80, 8), ("Qwen2.5-72B", "Long-DPO", 141, 64)])
def test_the_committed_json_is_what_the_planner_says(place: tuple[str, str, int, int]) -> None:
    now = planning.make_cell(*place)
    planning.keep_traces([now], [CELLS[place]])
    assert now == CELLS[place], AGAIN


def test_the_committed_predictions_of_public_figures_are_what_the_planner_says() -> None:
    assert public.predict_all(PUBLIC.path) == PUBLIC, AGAIN
    for figure in PUBLIC.runs:
        assert figure["source"].startswith("https://")
        assert figure["note"] in PUBLIC.about["notes"]


def test_solopo_never_goes_less_far_than_vanilla_nor_less_memory_further() -> None:
    far = {place: (cell["longest"] or {"long": 0})["long"] for place, cell in CELLS.items()}
    for model, recipe, gib, gpus in far:
        assert far[model, "SoLo-DPO", gib, gpus] >= far[model, "Long-DPO", gib, gpus]
        assert far[model, recipe, 141, gpus] >= far[model, recipe, 80, gpus]


def test_a_traced_peak_stays_with_its_layout_alone_and_is_not_traced_again() -> None:
    cell = copy.deepcopy(CELLS["Qwen2.5-7B", "SoLo-DPO", 80, 8])
    for plan in cell["plans"].values():
        if plan:
            plan.pop(TRACED, None)
            plan.pop(FORMULAS, None)
    assert planning.to_trace([cell])[:2] == [(cell, 32 * 1024), (cell, 64 * 1024)]  # the smallest runs first
    plain, again, other = (copy.deepcopy(cell) for _ in range(3))
    cell["plans"]["32768"] |= {TRACED: 1.0, FORMULAS: planning.formulas()}
    other["plans"]["32768"]["recompute"] = "changed"
    planning.keep_traces([again, other], [cell])
    assert again == cell
    assert TRACED not in other["plans"]["32768"]
    assert planning.to_trace([again])[0] == (again, 64 * 1024)
    for stamp in ({FORMULAS: "other formulas"}, {}):
        stale = copy.deepcopy(cell)
        del stale["plans"]["32768"][FORMULAS]
        stale["plans"]["32768"] |= stamp
        assert planning.to_trace([stale])[0] == (stale, 32 * 1024)
        planning.keep_traces([now := copy.deepcopy(plain)], [stale])
        assert now == plain


def _trace(_: int, out: str, place: Any, long: int) -> None:
    torch.save(planning.traced_peak(CELLS[place], long), out)


@pytest.mark.slow
def test_a_committed_trace_is_what_a_trace_says_now(tmp_path: Path) -> None:
    """Some 20 s."""
    place, long = ("Qwen2.5-7B", "SoLo-DPO", 80, 8), 32 * 1024
    with forking():
        torch.multiprocessing.start_processes(_trace, (str(tmp_path / "t"), place, long), 1, start_method="spawn")
    committed = CELLS[place]["plans"][str(long)][TRACED]
    assert torch.load(tmp_path / "t") == pytest.approx(committed, rel=0.005), "run planner.py trace anew"
