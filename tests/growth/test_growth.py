"""The rounds of a growth: their commands, what is refused, the rule, resuming, the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import solopo_nemo
from solopo_nemo.commands import grow as command
from solopo_nemo.growth.page import rounds_table, write_growth_page
from solopo_nemo.growth.plan import GrowthSettings, phases
from solopo_nemo.growth.rounds import Round, finished_round, grow, summary
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL

ROOT = Path(solopo_nemo.__file__).parents[1]
OWN = ["--source", "questions.jsonl", "--model", str(EMBEDDED_MODEL), "--lengths", "8K,16K"]


def settings(*words: str, out: Path = Path("out")) -> GrowthSettings:
    return command._settings(command._parser().parse_intermixed_args([*words, "--out", str(out)]))


def test_the_commands_of_a_growth(capsys: pytest.CaptureFixture[str]) -> None:
    """Their options are checked by the parsers of the tools."""
    serve = "--backend openai --serve 'vllm serve {model} --port {port}'"
    recipe = ["solo_orpo", "model=custom", "objective.lambda_=0.2"]
    command.main(
        [
            *OWN,
            "--dry-run",
            f"--sampling={serve}",
            "--contexts=--long document --pool p",
            "--evaluation=--data d --limit 9",
            *recipe,
        ]
    )
    lines = [line.split(" -m solopo_nemo ")[1] for line in capsys.readouterr().out.splitlines()]
    assert [line.split()[0] for line in lines] == [
        "evaluate",
        *(["build_contexts", "sample_pairs", "solo_orpo", "evaluate"] * 2),
    ]
    first, second = "outputs/grow/round_1_8K", "outputs/grow/round_2_16K"
    assert lines[0].endswith("--suite ruler_qa --lengths 2048,8192,16384 --data d --limit 9")
    assert f"--short-tokens 1100 --long-tokens 16384 --out {second}/contexts.jsonl --long document --pool p" in lines[5]
    assert f"--contexts {second}/contexts.jsonl --model {first}/train/hf --seed 2" in lines[6]
    assert lines[6].endswith("--backend hf --backend openai --serve 'vllm serve {model} --port {port}'")
    assert lines[7] == (
        f"solo_orpo data.train={second}/triplets.jsonl model.init={first}/train/hf output_dir={second}/train "
        "model=custom objective.lambda_=0.2"
    )
    assert "--lengths 2048,16384,32768" in lines[8]


def test_credentials_of_a_server_are_neither_printed_nor_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The phases are started with them. A growth goes on with others."""
    asking = "--backend openai --base-url=http://user:{0}@h/v1?key={0} --serve 'vllm {{model}} {{port}} --api-key {0}'"
    given = settings(f"--sampling={asking.format('first-secret')}", out=tmp_path)
    finish(given, 1)
    phase, record = phases(given, 1)[1], given.folder(1) / "commands.json"
    assert "--base-url=http://user:first-secret@h/v1?key=first-secret" in phase.command
    record.write_text(json.dumps({"pairs": phase.words}))  # as version 0.2.0 first wrote it
    phases(given, 1)[2].note()
    noted = record.read_text()
    command.main(["--dry-run", f"--sampling={asking.format('first-secret').partition(' --serve')[0]}"])
    for text in (noted, capsys.readouterr().out):
        assert "--base-url=http://h/v1" in text and "first-secret" not in text
    assert phases(settings(f"--sampling={asking.format('other')}", out=tmp_path), 1)[1].finished()


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--sampling=--backend openai --base-url ftp://user:pw@h"], "--base-url ftp://h: not an address"),
        (["--source", "q.jsonl", "--model", "m"], "--lengths: needed"),
        (["--source", "q.jsonl", "--lengths", "8K"], "--model: needed"),
        ([*OWN[:2], "--lengths", "8K", "--model", "/no/such"], "--model /no/such: no Hugging Face folder"),
        ([*OWN, "--lengths", "16K,8K"], "must rise"),
        ([*OWN, "--short", "8K"], "from above the short length of 8K"),
        ([*OWN, "--lengths", "8K,32K"], "has a window of 32768 tokens, and the evaluation goes to 65536"),
        ([*OWN, "--evaluation=--yarn 4"], "--yarn: would extend the window again"),
        (["solo_dpo", "model.rope_scaling={type: yarn, factor: 4}"], "would extend the window again"),
        (["--lengths", "2,32"], "go to 16 times"),
        (["--reach", "2"], "--reach 2"),
        (["--guard", "-1"], "--guard -1"),
        (["solo_dpo", "data.train=x.jsonl"], "data.train=x.jsonl: each round sets it"),
        (["solo_dpo", "trainer.epoch=2"], "trainer.epoch"),
        (["no_recipe"], "no_recipe: no such recipe"),
        (["solo_dpo", "peft=lora"], "peft.merge=true"),
        (["--sampling=--sampled 8"], "--sampled"),
        (["--evaluation=--fast"], "--fast"),
        ([*OWN, "--contexts=--limits 3"], "--limits"),
        (["--contexts=--limit 3"], "--contexts: is for --source"),
        (["--short-tokens", "900"], "--short-tokens: is for --source"),
        (["--contexts='"], "--contexts ': cannot be split"),
        (["--sampling=--size 0"], "--size 0"),
        (["--sampling=--temperature 0"], "--temperature 0"),
        (["--sampling=--samples 1"], "--samples 1: a pair needs at least 2"),
        (["--sampling=--backend openai"], "--base-url: needed"),
        (["--sampling=--backend openai --serve 'no-such {model} {port}'"], "no-such is no program here"),
        (["--sampling=--backend openai --serve 'env {model}'", "--dry-run"], "needs {port}"),
        ([*OWN, "--contexts=--workers 0"], "--workers 0"),
        ([*OWN], "questions.jsonl: no such file or directory"),
        (["--sampling=--model m"], "--sampling --model: each round sets it"),
        (["--sampling=--seed=3"], "--seed=3: each round sets it"),
        (["--evaluation=--suite longbench_qa"], "--evaluation --suite: each round sets it"),
        (["--evaluation=--comp a b"], "--comp: each round sets it"),
        ([*OWN, "--contexts=--long-tokens 9"], "--contexts --long-tokens: each round sets it"),
        (["solo_dpo", "dry_run=true"], "dry_run=true: each round sets it"),
    ],
)
def test_bad_settings_are_one_line_before_anything_runs(
    words: list[str], culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solopo_nemo.growth.rounds.grow", lambda *_: pytest.fail("it begins"))
    with pytest.raises(UserError) as error:
        command.main([*words, "--out", str(tmp_path / "out")])
    assert culprit in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_starting_model_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((EMBEDDED_MODEL / "config.json").read_text())
    with pytest.raises(UserError, match=r"no safetensors, which training reads"):
        command.main(["--model", str(tmp_path), "--dry-run"])


def finish(given: GrowthSettings, number: int, scores: dict[int, float] | None = None) -> None:
    """Leave the files of a finished round; scores of 100 questions."""
    folder = given.folder(number)
    for phase in phases(given, number):
        phase.done.parent.mkdir(parents=True, exist_ok=True)
        phase.done.write_text("{}\n{}\n")
        phase.note()
    if number:
        lines = [json.dumps({"step": step, "seconds": 1.5}) for step in (1, 2)]
        (folder / "train" / "metrics.jsonl").write_text("\n".join(lines))
        (folder / "train" / "hf").mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / "train" / "hf" / name).touch()
    record = {"model": "m", "base_url": None, "yarn": None}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    cells = folder / "evaluation" / "cells" / "builtin"
    cells.mkdir(parents=True)
    for length, score in (scores or dict.fromkeys(given.evaluated(number), 0.9)).items():
        samples = [{"id": str(n), "accuracy": float(n < 100 * score)} for n in range(100)]
        cell = {"suite": "builtin", "cell": f"{length}x", "labels": {"length": length}, "metric": "accuracy"}
        (cells / f"{length}x.json").write_text(json.dumps(cell | {"samples": samples}))


def test_a_damaged_file_of_a_finished_round_is_named(tmp_path: Path) -> None:
    given = settings("--lengths", "2", out=tmp_path)
    for number in (0, 1):
        finish(given, number)
    for file, text in (
        ("train/metrics.jsonl", '{"step": 1, "sec'),
        ("train/metrics.jsonl", None),
        ("commands.json", "{"),
    ):
        path = given.folder(1) / file
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
            grow(given)


def test_a_model_that_is_gone_is_named_before_a_phase_that_needs_it(tmp_path: Path) -> None:
    """Without round 1's model round 2 cannot begin, and without the last model a growth has no result."""
    given = settings("--lengths", "2,4", out=tmp_path)
    for number in range(3):
        finish(given, number)
    weights = [Path(given.policy(number)) / "model.safetensors" for number in (1, 2)]
    weights[0].unlink()
    assert grow(given)[0] == 0
    weights[1].unlink()
    with pytest.raises(UserError, match="round_2_4x/train/hf: the model of round 2 is gone"):
        grow(given)
    (given.folder(2) / "contexts.jsonl").unlink()
    with pytest.raises(UserError, match="round_1_2x/train/hf: the model of round 1 is gone"):
        grow(given)


def test_a_source_that_has_changed_since_a_round_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "questions.jsonl"
    source.write_text('{"a": 1}\n')
    given = settings(*OWN, out=tmp_path / "out")
    given = replace(given, content=command._content(given))
    finish(given, 1)
    contexts = phases(given, 1)[0]
    assert contexts.finished()
    source.write_text('{"a": 2}\n')
    changed = replace(given, content=command._content(given))
    with pytest.raises(UserError, match="round_1_8K: contexts finished with another content of --source: restore it"):
        phases(changed, 1)[0].finished()


@pytest.mark.parametrize(
    ("scores", "verdict", "kept"),
    [
        ({1: 0.95, 2: 0.80, 4: 0.5}, "goes on", True),
        ({1: 0.95, 2: 0.75, 4: 0.5}, "stops: 75.0 here is below 80 % of the short score 95.0", True),
        ({1: 0.89, 2: 0.85, 4: 0.5}, "stops: the short score fell by 6.0 points, more than 5", False),
    ],
)
def test_the_rule(scores: dict[int, float], verdict: str, kept: bool, tmp_path: Path) -> None:
    given = settings(out=tmp_path)
    finish(given, 0, {1: 0.95, 2: 0.7, 4: 0.4})
    finish(given, 1, scores)
    code, (start, first, *_) = _finished(given, 1)
    assert (code, start.goes_on) == (0, True)
    assert (first.verdict, first.goes_on, first.kept) == (verdict, verdict == "goes on", kept)
    assert first.gain is not None and first.gain.value == pytest.approx(scores[2] - 0.7)
    assert (first.pairs, first.steps, first.seconds) == (2, 2, 3.0)
    policy = given.policy(1) if kept else given.model
    assert summary(given, [start, first])["policy"] == policy


def _finished(given: GrowthSettings, last: int) -> tuple[int, list[Round]]:
    done: list[Round] = []
    for number in range(last + 1):
        done.append(finished_round(given, number, done))
    return 0, done


def test_finished_rounds_are_not_run_again_and_get_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings("--lengths", "2,4", out=tmp_path)
    for number in range(3):
        finish(given, number)
    monkeypatch.setattr("solopo_nemo.growth.rounds._run", lambda *_: pytest.fail("a phase is run again"))
    assert command.main(["--lengths", "2,4", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["policy"] == str(tmp_path / "round_2_4x" / "train" / "hf")
    assert [one["verdict"] for one in found["rounds"]] == [
        "the starting model",
        "goes on",
        "ends: the last length is done",
    ]
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<tr>") == 4 and "at least 80 % of the score at 1x" in page and "90.0 (83-94)" in page
    assert "Round 2 ends: the last length is done." in page
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "scores.png", "scores-dark.png"}
    # other settings: where they decide a result, not where they say how it is computed; more lengths go on
    longer = settings("--lengths", "2,4,8", "--sampling=--device cuda", "solo_dpo", "parallel.tensor=2", out=tmp_path)
    assert all(phase.finished() for number in range(3) for phase in phases(longer, number))
    for words, names in (
        (["--sampling=--samples 4"], "pairs finished with other settings (fewer; now 4)"),
        (["solo_dpo", "optim.lr=0.1"], "training finished with other settings (fewer; now optim.lr=0.1)"),
        (["--evaluation=--limit 9"], "start: evaluation finished with other settings (fewer; now --limit 9)"),
    ):
        with pytest.raises(UserError) as error:
            grow(settings("--lengths", "2,4", *words, out=tmp_path))
        assert names in str(error.value)


def test_the_table_of_an_unfinished_growth(tmp_path: Path) -> None:
    given = settings(out=tmp_path)
    finish(given, 0)
    rounds = _finished(given, 0)[1]
    assert write_growth_page(given, rounds).is_file()
    assert rounds_table(given, rounds).rows[0][:4] == ("start", "-", "-", "-")


FAKE = """
import sys, time
from pathlib import Path
from solopo_nemo.growth import rounds
from solopo_nemo.growth.plan import Phase
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
out = Path(sys.argv[1])
work = "import sys, time; from pathlib import Path; o, n = Path(sys.argv[1]), sys.argv[2]; (o / f'{n}.starts').open('a').write('x'); time.sleep(600 * (len((o / f'{n}.starts').read_text()) < 2)); (o / n).write_text('done')"
rounds.phases = lambda settings, number: [Phase(n, out, ("-c", work, str(out), n), out / n) for n in "abcd"]
rounds.finished_round = lambda *_: rounds.Round(0, 1, {}, None, goes_on=False)
from types import SimpleNamespace
rounds.grow(SimpleNamespace(lengths=(1,), folder=lambda number: out, policy=lambda number: EMBEDDED_MODEL))
"""


def wait_until(true: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    while not true():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_9_in_each_phase(tmp_path: Path) -> None:
    """Each phase hangs at its first start, and is done at its second; 20 s."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words: Any = [sys.executable, "-c", FAKE, tmp_path]
    for name in "abcd":
        with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
            wait_until((tmp_path / f"{name}.starts").exists, process)
            workers = [one for one in psutil.Process(process.pid).children(recursive=True) if one.is_running()]
            process.kill()
        psutil.wait_procs(workers, timeout=20)
        assert not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert subprocess.run(words, env=environment).returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.starts")} == {f"{n}.starts": "xx" for n in "abcd"}


@pytest.mark.long
@pytest.mark.slow
def test_the_embedded_world_grows_with_a_real_server(tmp_path: Path) -> None:
    """One round of the real tools, killed in the sampling and in the training, and again; seven minutes when busy."""
    llama = f"{sys.executable} {ROOT}/tests/support/llama_server.py {{model}} --name {{model}} --port {{port}}"
    serve = f"--concurrency 4 --serve '{llama} --slots 8 --context 2048'"
    words = [sys.executable, str(ROOT / "tools" / "grow.py"), "--lengths", "2", "--out", str(tmp_path), "--json"]
    words += [f"--sampling=--size 32 --backend openai {serve}", f"--evaluation=--limit 16 {serve}"]
    words += ["--reach", "0.1", "--guard", "90", "solo_dpo", "trainer.checkpoint_every=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = tmp_path / "round_1_2x"
    pairs = folder / "triplets.jsonl"
    for begun in (pairs.with_name(f"{pairs.name}.samples.sqlite"), folder / "train" / "metrics.jsonl"):
        assert not begun.exists()
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(words, env=environment, stderr=log) as process:
            wait_until(begun.exists, process)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs(workers, timeout=120)[1]
    before = pairs.stat()
    for _ in range(2):
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["policy"] == str(folder / "train" / "hf")
        assert [(one["pairs"], one["steps"]) for one in found["rounds"]] == [(0, 0), (32, 2)]
        assert found["rounds"][1]["scores"].keys() == {"1x", "2x", "4x"}
    assert pairs.stat() == before
