"""Servers that `--serve` starts: they are waited for, named when they fail, and gone afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from pair_samples import asked_row
from samples import RowWriter

import solopo_nemo
from solopo_nemo.builders.pairs.serving import serving
from solopo_nemo.commands import evaluate, sample_pairs
from solopo_nemo.runtime.errors import RunFault, UserError

SERVER = Path(__file__).parents[1] / "support" / "served.py"
FAKE = f"{shlex.quote(sys.executable)} -I -S {SERVER} {{model}} {{port}}"
BASH = "bash -c 'echo loading; echo no memory left; {}' {{model}} {{port}}"


def child_of(log: Path) -> psutil.Process:
    """The process that the server has started."""
    lines = log.read_text().splitlines()
    return psutil.Process(next(int(line.split()[1]) for line in lines if line.startswith("child ")))


def gone(process: psutil.Process) -> bool:
    psutil.wait_procs([process], timeout=20)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("vllm serve --port {port}", r"needs \{model\}, such as"),
        ("vllm serve {model}", r"needs \{port\}"),
        ("no-such-program {model} {port}", "no-such-program is no program here"),
        ("vllm 'serve {model} {port}", "cannot be split into words"),
        (BASH.format("exit 3"), r"exit code 3 before it answered: loading / no memory left \(log: .*s\.log\)"),
        (BASH.format("kill -9 $$"), "exit code 137 before it answered"),
        ("true {model} {port}", "exit code 0 before it answered: it said nothing"),
        (BASH.format("echo key: $3; exit 3") + " --api-key abcd", r"left / key: \*\*\* \(log"),
        (BASH.format("sleep 600"), r"did not answer at http.* within 0\.6 s \(--patience changes that\): (loading|it said)"),
    ],
)  # fmt: skip
def test_a_server_that_never_answers_is_one_line(command: str, words: str, tmp_path: Path) -> None:
    patience = 0.6 if "sleep" in command else 600
    with pytest.raises(UserError, match=words), serving(command, "m", None, patience, tmp_path / "s.log"):
        pytest.fail("it answers")


def test_a_key_in_the_command_or_in_the_servers_words_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    told = BASH.format("echo key $OPENAI_API_KEY, http://u:sk-word@h; exit 3") + " --api-key sk-secret"
    for command in (told, told.replace("{port}", ""), told.replace("bash", "no-such"), f"{told} '"):
        with pytest.raises(UserError) as refused, serving(command, "m", None, 600, tmp_path / "s.log"):
            pytest.fail("it answers")
        assert "***" in str(refused.value) and "sk-" not in str(refused.value), refused.value


def test_an_address_and_a_command_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --base-url out"), serving(FAKE, "m", "http://x/v1", 1, tmp_path / "s"):
        pytest.fail("both are taken")
    with serving(None, "m", "http://x/v1", 1, tmp_path / "s") as address:
        assert address == ("http://x/v1", None)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def command(tmp_path: Path, write_rows: RowWriter, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `sample_pairs`, for a server that a proxy of the environment cannot reach."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    contexts = write_rows([asked_row(number) for number in range(3)], "contexts.jsonl")
    given = ["--contexts", str(contexts), "--backend", "openai", "--model", "a model", "--samples", "2"]
    return [*given, "--out", str(tmp_path / "pairs.jsonl")]


def test_sampling_starts_and_stops_a_server(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_pairs.main([*command, "--serve", f"{FAKE} --deaf"])
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 3
    # it had ignored SIGTERM
    assert gone(child_of(tmp_path / "pairs.jsonl.server.log"))
    said = " ".join(capsys.readouterr().err.split())
    assert "pairs.jsonl.server.log)" in said
    assert "answers after" in said


def test_a_server_that_dies_at_work_ends_the_command(command: list[str], tmp_path: Path) -> None:
    words = r"exit code 7: CUDA error: / out of memory \(log: .*server\.log\): start the same command again"
    with pytest.raises(RunFault, match=words):
        sample_pairs.main([*command, "--serve", f"{FAKE} --dies"])
    sample_pairs.main([*command, "--serve", FAKE])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_server_ends_with_the_command_however_that_ends(number: signal.Signals, tmp_path: Path) -> None:
    log, program = tmp_path / "s.log", (
        "import sys, time; from pathlib import Path\n"
        "from solopo_nemo.builders.pairs.serving import serving\n"
        "from solopo_nemo.runtime import cli\n"
        "def main():\n"
        "    with serving(sys.argv[1], 'm', None, 60, Path(sys.argv[2])):\n"
        "        print('up', flush=True); time.sleep(600)\n"
        "cli.run(main)\n"
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(solopo_nemo.__file__).parents[1])}
    words: Any = [sys.executable, "-c", program, f"{FAKE} --deaf", log]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        child = child_of(log)
        process.send_signal(number)
        assert process.wait(60) == (75 if number != signal.SIGKILL else -signal.SIGKILL)
    assert gone(child)


@pytest.mark.slow
def test_a_real_server_is_served_and_evaluated(tmp_path: Path) -> None:
    """llama.cpp over the embedded model, then a server that dies; 10 s."""
    from llama_server import write_gguf

    asset = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
    write_gguf(asset, tmp_path / "tiny.gguf")
    script = Path(__file__).parents[1] / "support" / "llama_server.py"
    serve = (
        f"{sys.executable} {script} {tmp_path / 'tiny.gguf'} --name {{model}} --port {{port}} --slots 2 --context 2048"
    )
    words = ["--model", "tiny", "--suite", "builtin", "--limit", "4", "--out", str(tmp_path / "out")]
    evaluate.main([*words, "--serve", f"{serve} --requests {tmp_path / 'requests'}"])
    cell = json.loads((tmp_path / "out" / "cells" / "builtin" / "1x.json").read_text())
    assert sum(sample["accuracy"] for sample in cell["samples"]) >= 3
    running = (" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))
    assert not [line for line in running if str(tmp_path) in line]
    with pytest.raises(RunFault, match="exit code 7: CUDA error"):
        evaluate.main([*words[:-1], str(tmp_path / "other"), "--serve", f"{FAKE} --dies"])
