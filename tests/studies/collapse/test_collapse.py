"""The study of the collapse: forces, the rule, what counts as a collapse, the choice of alpha, the page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from solopo_nemo.objectives import SequenceScores, build_objective
from solopo_nemo.runtime.errors import UserError
from studies.collapse.cells import (
    ALPHAS,
    AUTO,
    FIRST,
    FORMS,
    FREE,
    GAPS,
    HIGHER,
    OBJECTIVES,
    RATES,
    SHORT,
    STEPS,
    VANILLA,
    Cell,
    Outcome,
    cells,
    control,
)
from studies.collapse.page import Study, write_page
from studies.collapse.rule import agreement, alarm, change, choices, collapsed, controls, predicted_safe
from studies.collapse.start import (
    Replay,
    StartFacts,
    Velocity,
    aligned_gap,
    critical_alpha,
    forces,
    lasting_alpha,
)
from studies.paths import DOCS

N, P, GAP = 4, 0.9, 8.0
"""Tokens of an answer, probability of each on the short prompt, and nats by which the long one is worse."""


def scores(margin: float = 0.0) -> tuple[dict[str, SequenceScores], dict[str, torch.Tensor]]:
    """One sample; ``margin`` nats more for the chosen answer than under the reference."""
    tokens, short = torch.tensor([float(N)]), torch.tensor([N * math.log(P)], dtype=torch.float64)
    logps = {"short_chosen": short, "short_rejected": short - 3.0, "long_chosen": short - GAP}
    reference = {"short_chosen": short - margin, "short_rejected": short - 3.0}
    return {name: SequenceScores(logp, tokens) for name, logp in logps.items()}, reference


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def odds(p: float) -> float:
    return math.log(p / (1 - p))


REJECTED = P * math.exp(-3.0 / N)
CRITICAL = {
    "dpo": 0.5,
    "simpo": 1 - sigmoid(2.0 * 3.0 / N - 1.0),
    "orpo": (1 - P) + 0.1 * (1 - sigmoid(odds(P) - odds(REJECTED))),
    "ipo": 1 / (0.1 * GAP),
    "slic": 0.0,  # a margin of 3 nats: the hinge is satisfied
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_critical_alpha_is_what_the_page_says(name: str) -> None:
    policy, reference = scores()
    assert critical_alpha(build_objective(name), policy, reference) == pytest.approx(CRITICAL[name], rel=1e-6)
    assert critical_alpha(build_objective(name, detach_short=True), policy, reference) == math.inf


def test_the_push_fades_with_the_margin_and_the_pull_does_not() -> None:
    pairs = [forces(build_objective("dpo"), *scores(margin)) for margin in (0.0, 30.0)]
    pushes = [found["rest"]["short_chosen"].item() for found in pairs]
    assert pushes == pytest.approx([0.1 / 2, 0.1 * (1 - sigmoid(3.0))])
    assert [found["alignment"]["short_chosen"].item() for found in pairs] == pytest.approx([-0.1, -0.1])
    assert pairs[0]["alignment"]["long_chosen"].item() == pytest.approx(0.1)
    # beyond the margin at which the critical alpha is reached, the two together pull down
    assert critical_alpha(build_objective("dpo"), *scores(30.0)) == pytest.approx(1 - sigmoid(3.0))


LASTING = {"dpo": 0.0, "simpo": 0.0, "orpo": 0.5, "ipo": 0.0, "slic": 0.0}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_lasting_alpha_is_what_the_page_says(name: str) -> None:
    policy, reference = scores()
    assert lasting_alpha(build_objective(name), policy, reference) == pytest.approx(LASTING[name], abs=1e-6)
    assert lasting_alpha(build_objective(name, detach_short=True), policy, reference) == math.inf


def test_an_nll_term_lasts() -> None:
    assert lasting_alpha(build_objective("dpo", nll_weight=0.2), *scores()) == pytest.approx(0.2 / N / 0.1)


def test_an_nll_term_pushes_too() -> None:
    plain, helped = (critical_alpha(build_objective("dpo", nll_weight=weight), *scores()) for weight in (0.0, 0.2))
    assert helped - plain == pytest.approx(0.2 / N / 0.1)


SMALL, LARGE = dict.fromkeys(OBJECTIVES, 0.1) | {"orpo": 2.0}, dict.fromkeys(OBJECTIVES, 2.7)
FACTS = {
    2: StartFacts(2, 4.0, -0.3, -0.6, -7.0, 0.2, 3.0, 7.0, 0.5, SMALL, CRITICAL, LASTING),
    8: StartFacts(8, 4.0, -0.3, -11.0, -7.0, 0.01, 4.0, 36.0, 0.1, LARGE, CRITICAL, LASTING),
}


def test_a_gap_is_measured_on_the_scale_that_is_aligned() -> None:
    policy, reference = scores()
    for name in OBJECTIVES:
        below = P * math.exp(-GAP / N)
        expected = odds(P) - odds(below) if name == "orpo" else GAP / N
        assert aligned_gap(build_objective(name), policy, reference) == pytest.approx(expected, rel=1e-6)
    assert FACTS[2].carried == pytest.approx(0.5 * 7 / 3)


def outcome(objective: str, form: str, alpha: float | str, gap: int, short: int, long: int = 50) -> Outcome:
    fall = -10.0 if short < 50 else -0.5
    steps = torch.linspace(0, 1, STEPS).tolist()
    curves = {
        "logps/chosen": [-0.5 + (fall + 0.5) * s for s in steps],
        "logps/chosen_long": [-11.0 + 5 * s for s in steps],
        "align/gap": [1.0 - 0.8 * s for s in steps],
        "rewards/margin": steps,
    }
    return Outcome(
        Cell(objective, form, alpha, gap, RATES[1], FIRST), 0.4 if alpha == AUTO else alpha, 100, short, long, curves
    )


def test_the_rule() -> None:
    assert all(predicted_safe(name, HIGHER, 100.0, facts) for name in OBJECTIVES for facts in FACTS.values())
    # the short side held: where the long one is behind
    assert predicted_safe("dpo", SHORT, 100.0, FACTS[8])
    assert not predicted_safe("dpo", SHORT, 0.1, FACTS[2])
    # both free: a small gap, or the lasting alpha
    assert predicted_safe("dpo", FREE, 100.0, FACTS[2])
    assert not predicted_safe("orpo", FREE, 100.0, FACTS[2])
    assert predicted_safe("orpo", FREE, 0.5, FACTS[8])
    assert not predicted_safe("orpo", FREE, 0.51, FACTS[8])
    assert not predicted_safe("dpo", FREE, 0.1, FACTS[8])


def test_a_collapse_is_a_loss_beyond_its_interval() -> None:
    beside = controls([outcome("dpo", FREE, VANILLA, 8, 95)])
    assert collapsed([outcome("dpo", FREE, 1.0, 8, 40)], beside)
    assert not collapsed([outcome("dpo", FREE, 1.0, 8, 84)], beside)
    # what the preference term does by itself is not the alignment's doing
    assert not collapsed([outcome("dpo", FREE, 1.0, 8, 40)], controls([outcome("dpo", FREE, VANILLA, 8, 45)]))
    assert change((50, 100), (50, 100)).value == 0
    assert change((0, 100), (0, 100)).half > 0


def test_prediction_and_outcome_are_counted_by_cell() -> None:
    found = [
        outcome("orpo", FREE, 0.1, 8, 95),
        outcome("dpo", FREE, 1.0, 8, 10),
        outcome("dpo", FREE, 3.0, 8, 95),
        outcome("dpo", FREE, 1.0, 2, 10),
        outcome("dpo", SHORT, 1.0, 8, 95),
        # the same cell at the other learning rate, without harm: it still counts as collapsed
        replace(outcome("dpo", FREE, 1.0, 8, 95), cell=Cell("dpo", FREE, 1.0, 8, RATES[0], 0)),
    ]
    found += [replace(outcome("dpo", FREE, VANILLA, 8, 95), cell=cell) for cell in {control(o.cell) for o in found}]
    free, held = (agreement(found, FACTS, form) for form in (FREE, SHORT))
    assert (free.safe_kept, free.safe_collapsed, free.unsafe_kept, free.unsafe_collapsed) == (1, 1, 1, 1)
    assert (held.safe_kept, held.safe_collapsed, held.unsafe_kept, held.unsafe_collapsed) == (1, 0, 0, 0)


def test_the_warning_is_tried_on_what_the_runs_left() -> None:
    found = [outcome("dpo", FREE, 1.0, 8, 10), outcome("dpo", SHORT, 1.0, 8, 95), outcome("dpo", FREE, VANILLA, 8, 95)]
    counted = alarm(found, 5.0)
    assert (counted.collapsed_warned, counted.collapsed_silent) == (1, 0)
    assert (counted.kept_warned, counted.kept_silent) == (0, 1)
    assert alarm(found, 50.0).collapsed_silent == 1


def test_auto_is_compared_with_the_best_of_the_sweep() -> None:
    sweep = [outcome("dpo", SHORT, alpha, 8, 95, long) for alpha, long in zip(ALPHAS, (20, 80, 50), strict=True)]
    (good,) = choices([*sweep, outcome("dpo", SHORT, AUTO, 8, 95, 75)])
    assert (good.best, good.chosen, good.reached) == (1.0, (0.4,), True)
    assert good.difference.value == pytest.approx(-0.025)
    (bad,) = choices([*sweep, outcome("dpo", SHORT, AUTO, 8, 60, 20)])
    assert not bad.reached
    assert choices(sweep) == []


def test_a_map_is_whole_a_seed() -> None:
    every = list(cells(2))
    assert (
        len({cell.name for cell in every}) == len(every) == 2 * len(OBJECTIVES) * (3 * 4 + 1) * len(GAPS) * len(RATES)
    )
    assert all(cell.seed == 1 for cell in every[: len(every) // 2])
    words = Cell("ipo", SHORT, AUTO, 8, 1e-3, 0).run().method
    assert words.recipe == "solo_ipo"
    assert {"objective.alpha=auto", "objective.detach_short=true", "optim.lr=0.001"} <= set(words.overrides)
    lifting = Cell("ipo", HIGHER, AUTO, 8, 1e-3, 0).run().method.overrides
    assert {"objective.detach_higher=true", "objective.detach_short=false"} <= set(lifting)


@pytest.fixture
def study() -> Study:
    outcomes = [
        outcome(name, form, alpha, gap, 95 if form != FREE or gap == 2 else 20)
        for name in OBJECTIVES
        for form in FORMS
        for alpha in (*ALPHAS, AUTO)
        for gap in GAPS
    ]
    outcomes += [outcome(name, FREE, VANILLA, gap, 95) for name in OBJECTIVES for gap in GAPS]
    velocities = [Velocity(step, -0.5 - step, -11.0, 3.0, -5.0 * step, 2.0) for step in range(0, 10, 2)]
    base = {1: (95, 100), 2: (92, 100), 4: (40, 100), 8: (7, 100), 16: (1, 100)}
    return Study(1, 260, base, FACTS, [Replay("dpo", form, 8, velocities) for form in FORMS], outcomes)


def test_a_replay_in_short(study: Study) -> None:
    taken = study.replays[0]
    first, second = taken.halves
    assert (first.own, second.own, first.carried) == (-10.0, -35.0, 2.0)
    assert taken.down == 4


def test_the_published_page_is_what_the_published_results_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []  # which figures there are, without drawing them
    monkeypatch.setattr("solopo_nemo.pages.figures.draw", lambda folder, name, make: drawn.append(name))
    write_page(Study.read(DOCS / "reproduction" / "collapse.json"), tmp_path / "collapse.md", tmp_path / "reproduction")
    assert (tmp_path / "collapse.md").read_text() == (DOCS / "collapse.md").read_text()
    assert drawn == ["collapse-why", "collapse-map", "collapse-auto"]


def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    for text in ("{}", '{"runs": []}'):
        (tmp_path / "collapse.json").write_text(text)
        with pytest.raises(UserError, match=r"collapse\.json: no file of such results"):
            Study.read(tmp_path / "collapse.json")


def test_a_map_that_has_not_been_run_is_not_made_up(study: Study, tmp_path: Path) -> None:
    write_page(replace(study, outcomes=[]), tmp_path / "collapse.md", tmp_path / "reproduction")
    page = (tmp_path / "collapse.md").read_text()
    assert "0 of 260 runs are in. The page shows the forces and the rule, but not yet whether the rule holds." in page
    assert [path.name for path in sorted((tmp_path / "reproduction").iterdir())] == [
        "collapse-why-dark.png",
        "collapse-why.png",
    ]
    assert not re.search(r"## The map|Does the rule hold|\*\*|\{[{%]", page)


@pytest.mark.slow
def test_seeds_that_the_rule_was_not_written_on_are_counted_apart(study: Study, tmp_path: Path) -> None:
    later = [replace(o, cell=replace(o.cell, seed=FIRST + 1)) for o in study.outcomes if o.cell.objective == "dpo"]
    write_page(replace(study, outcomes=[*study.outcomes, *later]), tmp_path / "collapse.md", tmp_path / "reproduction")
    page = (tmp_path / "collapse.md").read_text()
    assert "| all together | higher side held | 40 | 0 | 0 | 0 |" in page
    assert "| unseen by the rule | higher side held | 8 | 0 | 0 | 0 |" in page


@pytest.mark.slow
def test_the_page_says_what_was_measured(study: Study, tmp_path: Path) -> None:
    write_page(study, tmp_path / "collapse.md", tmp_path / "reproduction")
    page = (tmp_path / "collapse.md").read_text()
    assert "130 of 260 runs are in" in page
    figures = re.findall(r"reproduction/[\w-]+\.png", page)
    assert len(figures) == 6
    assert all((tmp_path / figure).is_file() for figure in figures)
    assert len(re.findall(r"-dark\.png", page)) == 3
    assert "| both sides free | 8x | 0.001 | 15 | 15 |" in page
    assert "| all together | higher side held | 40 | 0 | 0 | 0 |" in page
    assert "unseen by the rule" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.count("|") == tables[i - 1].count("|") for i, line in enumerate(tables) if set(line) <= set("|-"))
    assert not re.search(r"\{[{%]|nan|None", page)
