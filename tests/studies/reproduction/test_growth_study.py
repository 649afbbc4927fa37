"""Growth in rounds against training at once: verdicts and page from chosen results; the smallest run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_up_results import score

from solopo_nemo.runtime.errors import UserError
from studies.reproduction import cli
from studies.reproduction.growth import ARMS, LENGTHS, RESULTS, GrowthSize, write_growth
from studies.reproduction.runs import Result
from studies.results import Results

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_verdicts_come_from_the_intervals(tmp_path: Path) -> None:
    better = {"base": 0.1, "rounds": 0.7, "direct-cost": 0.4, "direct-data": 0.99, "stay-cost": 0.7, "stay-data": 0.2}
    runs = [
        Result(arm, seed, "", [], [score(n, better[arm], np.random.default_rng([seed, n, *arm.encode()])) for n in LENGTHS],
               steps=9, flops=1e12, seconds=7.0)
        for arm in ARMS for seed in (1, 2, 3)
    ]  # fmt: skip
    Results(tmp_path / "results" / RESULTS, {"size": asdict(GrowthSize())}, [asdict(run) for run in runs]).save()
    found = write_growth(tmp_path / "results", tmp_path / "growth.md")
    assert found["verdicts"] == {
        f"{arm} at {length}x": verdict
        for length in (32, 8, 1)
        for arm, verdict in {
            "base": "holds", "direct-cost": "holds", "direct-data": "does not hold", "stay-cost": "not resolved",
            "stay-data": "holds",
        }.items()
    }  # fmt: skip
    page = (tmp_path / "growth.md").read_text()
    assert "| 32x at once, equal data | 9 | 0.072 | 7 | " in page
    assert page.count("does not hold") == 3 and 'src="results/growth.png"' in page


def test_the_published_page_is_what_the_published_results_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solopo_nemo.pages.figures.draw", lambda *_: None)
    shutil.copytree(DOCS / "growth-study", tmp_path / "growth-study")
    write_growth(tmp_path / "growth-study", tmp_path / "growth-study.md")
    assert (tmp_path / "growth-study.md").read_text() == (DOCS / "growth-study.md").read_text()


def test_the_plan_and_what_it_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale=growth", "seeds=1", "--plan", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == len(ARMS)
    with pytest.raises(UserError, match="scale=growth: takes neither --only nor --dry-run"):
        cli.main(["scale=growth", "--only", "main"])
    with pytest.raises(UserError, match=r"growth\.json: no file of such results"):
        cli.main(["scale=growth", "--page", "--out", str(tmp_path)])


@pytest.mark.long
@pytest.mark.slow
def test_the_smallest_comparison(tmp_path: Path) -> None:
    words = ["scale=growth", "seeds=1", "steps=2", "pairs=16", "questions=16", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    runs = {run["method"]: run for run in json.loads((tmp_path / "results" / RESULTS).read_text())["runs"]}
    assert list(runs) == list(ARMS)
    assert [runs[arm]["steps"] for arm in ("base", "rounds", "direct-data", "stay-data")] == [0, 6, 6, 6]
    spent = {arm: run["steps"] * run["flops"] for arm, run in runs.items()}
    for arm in ("direct-cost", "stay-cost"):
        assert spent[arm] == pytest.approx(spent["rounds"], abs=runs[arm]["flops"] / 2)
    assert (tmp_path / "growth.md").is_file()
