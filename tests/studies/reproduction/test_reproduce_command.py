"""`tools/reproduce.py`: plans, checks, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solopo_nemo.runtime.errors import UserError
from studies.reproduction import cli
from studies.reproduction.mini import Wanted, reproduce
from studies.reproduction.runs import Result
from studies.reproduction.study import Size, all_cells, choose

ROOT = Path(__file__).resolve().parents[3]


def wanted(folder: Path, only: str | None = None) -> Wanted:
    return Wanted(Size(seeds=1), only, folder, folder / "results", folder / "page.md")


def test_the_plan_counts_what_is_missing(tmp_path: Path) -> None:
    plan = reproduce(wanted(tmp_path, "main/base-1,main/*orpo-1"), 2, "plan")
    assert plan["start"]
    assert plan["pairs"] == ["short-8x-800-1", "long-8x-800-1"]
    assert plan["runs"] == [
        f"main/{name}-1" for name in ("base", "short-orpo", "long-orpo", "expand-orpo", "solo-orpo")
    ]
    assert plan["minutes"] == pytest.approx(plan["core_minutes"] / 2, abs=0.1)
    Result("solo-orpo", 1, "solo_orpo", [], []).save(tmp_path / "runs" / "main" / "solo-orpo-1" / "result.json")
    assert "main/solo-orpo-1" not in reproduce(wanted(tmp_path, "main/base-1,main/*orpo-1"), 2, "plan")["runs"]


def test_everything_takes_less_than_an_hour_on_two_cores(tmp_path: Path) -> None:
    plan = reproduce(Wanted(Size(), None, tmp_path, tmp_path, tmp_path / "page.md"), 2, "plan")
    assert 30 < plan["minutes"] < 60


def test_a_dry_run_runs_nothing_and_finds_a_damaged_result(tmp_path: Path) -> None:
    only = "main/solo-dpo-1,time/solo-orpo-2x-1"
    assert reproduce(wanted(tmp_path, only), 1, "dry-run")["runs"] == only.split(",")
    assert not (tmp_path / "start").exists()
    damaged = tmp_path / "runs" / "main" / "solo-dpo-1" / "result.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[]")
    with pytest.raises(UserError, match=r"solo-dpo-1/result.json: no file of such results"):
        reproduce(wanted(tmp_path, only), 1, "dry-run")


def test_cells_have_keys_of_their_own() -> None:
    cells = all_cells(Size())
    assert len({cell.key for cell in cells}) == len(cells)
    with pytest.raises(UserError, match=r"--only main/solo-ppo: names nothing; studies are"):
        choose(cells, "main/solo-ppo")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scale=70b"], "scale=70b: must be mini or 7b or growth"),
        (["seeds=0"], "seeds=0: must be a number of at least 1"),
        (["seed=1"], "seed=1: no such setting; there are scale, seeds, steps, questions, pairs"),
        (["scale=7b"], "scale=7b: runs on GPUs, command by command"),
        (["--workers", "0"], "argument --workers: invalid positive whole number value: '0'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_else(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cli.main(words)


def test_a_plan_as_json_is_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["seeds=1", "--only", "time", "--plan", "--json", "--out", str(tmp_path)]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]) == 10
