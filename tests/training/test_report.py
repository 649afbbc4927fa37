from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samples import triplet_row

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.data.prepared import prepare_dataset
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs
from solopo_nemo.pages.theme import THEMES
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.training.report.page import write_report
from solopo_nemo.training.report.plots import PLOTS
from solopo_nemo.training.report.rows import read_metrics

HOSTILE = "<script>alert('\"&')</script>"
VANILLA = ("loss", "loss/po", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
SOLO = ("loss/align", "align/gap", "align/signed_gap", "rewards/chosen_long", "logps/chosen", "logps/chosen_long")
ROUTER = ("moe/busiest_expert", "moe/aux_loss", "moe/z_loss")
COSTS = ("lr", "grad_norm", "tokens", "tokens_long", "seconds", "peak_memory_gib")


def rows(steps: int, keys: tuple[str, ...] = VANILLA + SOLO + ROUTER + COSTS) -> list[dict[str, Any]]:
    return [
        {"step": step, "epoch": step / 10, **{key: (step % 7 + 1) / (i + 1) for i, key in enumerate(keys)}}
        for step in range(1, steps + 1)
    ]


def accuracy(*shares: float) -> list[dict[str, Any]]:
    return [
        {
            "length": 2**i,
            "paragraphs": 8 * 2**i,
            "tokens": 400.0 * 2**i,
            "correct": round(100 * share),
            "total": 100,
            "accuracy": share,
            "low": max(share - 0.1, 0.0),
            "high": min(share + 0.1, 1.0),
        }
        for i, share in enumerate(shares)
    ]


def configure(output: Path, *overrides: str) -> RunConfig:
    config = load_config("solo_dpo", overrides)
    config.output_dir = str(output)
    return config


def report(
    config: RunConfig, metrics: list[dict[str, Any]], measured: dict[str, Any] | None = None
) -> tuple[str, set[str]]:
    """Write the report of a run with these results: the page, and the names of its plots."""
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if measured is not None:
        (config.output / "accuracy.json").write_text(json.dumps(measured))
    write_report(config)
    folder = config.output / "report"
    names = {path.stem for path in folder.glob("*.png") if not path.stem.endswith("-dark")}
    assert {p.name for p in folder.iterdir()} == {f"{n}{t.suffix}.png" for n in names for t in THEMES} | {"index.html"}
    page = (folder / "index.html").read_text()
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG" and min(image.size) > 300
        assert f'"{path.name}"' in page
    return page, names


@pytest.mark.slow
def test_whole_report(tmp_path: Path) -> None:
    measured = {"before": accuracy(0.9, 0.2), "after": accuracy(1.0, 0.75)}
    page, names = report(configure(tmp_path), rows(60), measured)
    assert names == {plot.name for plot in PLOTS} | {"accuracy"}
    assert "20.0 % (10-30)" in page and "75.0 % (65-85)" in page and "+55.0" in page
    assert "align/signed_gap" in page and "tokens_per_second" not in page
    assert "max_steps" in page and "detach_short" in page
    assert not re.search(r'(src|srcset|href)="(\w+:|//)', page), "nothing is loaded from elsewhere"
    assert "not finite" not in page


def test_the_scored_tokens_of_a_sample_are_marked(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(triplet_row(chosen=HOSTILE, prompt_long=[{"role": "user", "content": "word " * 300}]))
    )
    prepare_dataset(
        tmp_path / "rows.jsonl", load_tokenizer(EMBEDDED_MODEL), Needs(config.build_objective().sequences), 2000, "error",
        tmp_path / "data" / "tokenized", "embedded", vocab_size=10**6,
    )  # fmt: skip
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial" / "hf").symlink_to(EMBEDDED_MODEL)
    page = html.unescape(report(config, rows(2))[0])
    assert "Scored tokens of sample t0" in page and "<code>long_chosen</code>: " in page
    marked = re.findall("<mark>(.*?)</mark>", page, re.DOTALL)
    assert [text.replace("|", "") for text in marked] == [
        f"{text}<im_end>" for text in (HOSTILE, "The answer is: No answer.", HOSTILE)
    ]
    assert "characters ..." in page


def test_a_chosen_alpha_is_shown(tmp_path: Path) -> None:
    config = configure(tmp_path, "objective.alpha=auto")
    (tmp_path / "alpha.json").write_text('{"alpha": 0.317, "norms": []}')
    assert "0.317, chosen by the run" in report(config, rows(2, ("loss",)))[0]


def test_the_layout_has_the_ranks_and_the_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path, "parallel.expert=2")
    assert "TP1 CP1 PP1 DP2 EP2, 2 ranks" in report(config, [])[0]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "TP1 CP1 PP1 DP8, 8 ranks" in report(configure(tmp_path), [])[0]


@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps_without_accuracy(tmp_path: Path, steps: int) -> None:
    page, names = report(configure(tmp_path), rows(steps))
    assert names == ({plot.name for plot in PLOTS} if steps else set())
    assert ("No step was recorded" in page) == (steps == 0)
    assert "Answer accuracy" not in page


@pytest.mark.slow
def test_missing_keys_have_no_plot_and_stale_plots_go(tmp_path: Path) -> None:
    config = configure(tmp_path)
    report(config, rows(3, ("align/gap",)), {"before": accuracy(0.5)})
    (tmp_path / "accuracy.json").unlink()
    page, names = report(config, rows(3, (*VANILLA, "lr")))
    assert names == {"loss", "rewards", "margin", "optimizer"}
    assert "align/gap" not in page and "grad_norm" not in page


def test_only_before_is_measured(tmp_path: Path) -> None:
    page, names = report(configure(tmp_path), rows(2, ("loss",)), {"before": accuracy(0.5)})
    assert "accuracy" in names and "50.0 % (40-60)" in page


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_values_that_are_not_finite(tmp_path: Path) -> None:
    metrics = rows(50)
    metrics[7]["loss"] = float("nan")
    metrics[8]["loss"] = float("inf")
    metrics[9]["seconds"] = 0.0
    metrics[10]["loss/po"] = 1e38
    del metrics[11]["logps/chosen"]
    for row in metrics:
        row["grad_norm"] = float("nan")
    page, names = report(configure(tmp_path), metrics)
    assert names == {plot.name for plot in PLOTS}
    assert "grad_norm (50 of 50 steps), loss (2 of 50 steps)" in page


def test_strings_are_escaped(tmp_path: Path) -> None:
    config = configure(tmp_path / HOSTILE.replace("/", "_"))
    config.plugins = [HOSTILE]
    config.recipe = config.model.init = config.data.train = HOSTILE
    config.objective["distance"] = HOSTILE
    page, _ = report(config, [{"step": 1, HOSTILE: 1.0}])
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=False)[:20] in page


def test_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
