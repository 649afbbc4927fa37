"""The suites from their files to their scores, over HTTP: models whose scores are known must get them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, chat_server
from suite_data import QUESTIONS, write_data

import solopo_nemo
from solopo_nemo.evaluation.differences import differences
from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.report import write_report
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.sources import find_source
from solopo_nemo.evaluation.suites import find_suites
from solopo_nemo.evaluation.tables import as_json
from solopo_nemo.runtime.errors import UserError

ASSET = Path(solopo_nemo.__file__).parent / "assets" / "tiny_qwen2"
SUITES = "ruler_qa,longbench_qa,longbench_v2,niah_plus"
QUESTION = re.compile(r"(?:Question|What is the correct answer to this question): (.*)")
CELLS = 3 * 2 + 6 + 2 + 2 * 2 * 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("data")
    return folder, write_data(folder)


def oracle(answers: dict[str, str]) -> Answer:
    def answer(prompt: str, body: dict[str, Any]) -> str:
        found = QUESTION.search(prompt)
        assert found is not None
        right = answers[found.group(1)]
        return f"The correct answer is ({right})" if len(right) == 1 else f"Let me see.\nThe answer is: {right}"

    return answer


def run(server: ChatServer, data: Path, out: Path, suites: str = SUITES, **settings: Any) -> Measured:
    model = ModelSettings("m", server.url, tokenizer=ASSET, window=4096, patience=-1)
    chosen = {"lengths": (1024, 2048), "depths": (0, 100), "seeds": (0, 1), "max_new_tokens": 64} | settings
    return evaluate(model, find_suites(suites), SuiteSettings(data, **chosen), out)


def scores(measured: Measured) -> dict[str, dict[str, float]]:
    (name,) = as_json([measured])["models"]
    return {
        suite: {title: view["scores"][name]["value"] for title, view in views.items()}
        for suite, views in as_json([measured])["suites"].items()
    }


def test_an_oracle_scores_100_everywhere(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(oracle(data[1])) as server:
        got = scores(run(server, data[0], tmp_path))
    assert set(got) == set(SUITES.split(","))
    assert {value for views in got.values() for value in views.values()} == {100.0}
    assert len(server.asked) == CELLS * QUESTIONS


def test_switches_of_the_chat_template_are_sent(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    switches = {"enable_thinking": False}
    with chat_server(oracle(data[1])) as server:
        model = ModelSettings("m", server.url, chat_template_kwargs=switches)
        evaluate(model, find_suites("longbench_qa"), SuiteSettings(data[0]), tmp_path)
    assert server.asked and all(body["chat_template_kwargs"] == switches for body in server.asked)


def test_a_model_that_says_nothing_scores_0_everywhere(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(lambda prompt, body: "") as server:
        got = scores(run(server, data[0], tmp_path))
    assert {value for views in got.values() for value in views.values()} == {0.0}


def test_a_model_of_known_errors_scores_what_arithmetic_says(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Right on even questions; on odd ones one word too many in texts, A in multiple choice."""
    right = oracle(data[1])

    def answer(prompt: str, body: dict[str, Any]) -> str | None:
        found = QUESTION.search(prompt)
        assert found is not None
        if int(found.group(1).rstrip("?").split()[-1]) % 2 == 0:
            return right(prompt, body)
        if "Choices:" in prompt:
            return "The correct answer is A"
        return f"{right(prompt, body)} perhaps"

    with chat_server(answer) as server:
        got = scores(run(server, data[0], tmp_path))
    half_f1 = (1 + 2 / 3) / 2
    assert got["ruler_qa"]["average"] == pytest.approx(100 * half_f1, abs=1e-3)
    assert got["ruler_qa"]["squad, 1K"] == pytest.approx(100 * half_f1, abs=1e-3)
    assert got["longbench_qa"]["multi-document"] == pytest.approx(100 * half_f1, abs=1e-3)
    # the answer is still contained
    assert got["niah_plus"]["single document, all"] == 100.0
    # letters A B C D A B: the odd questions are B, D and B
    assert got["longbench_v2"]["overall"] == 50.0
    assert (got["longbench_v2"]["easy"], got["longbench_v2"]["hard"]) == (100.0, 0.0)


@pytest.mark.slow
def test_what_was_asked_is_not_asked_again(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(oracle(data[1])) as server:
        first = scores(run(server, data[0], tmp_path))
        asked = len(server.asked)
        assert scores(run(server, data[0], tmp_path)) == first
        assert len(server.asked) == asked
        # scores alone were lost: the answers are still there
        shutil.rmtree(tmp_path / "cells")
        assert scores(run(server, data[0], tmp_path)) == first
        assert len(server.asked) == asked
        # another seed draws anew, the others stay
        run(server, data[0], tmp_path, "longbench_v2", seeds=(0, 1, 5))
        assert len(server.asked) == asked + QUESTIONS


def test_credentials_of_the_server_are_stored_nowhere_and_others_go_on(
    data: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    with chat_server(oracle(data[1])) as server:
        address, asked = server.url, 0
        for secret in ("first-secret", "second-secret"):
            server.url = address.replace("://", f"://user:{secret}@") + f"?key={secret}"
            run(server, data[0], tmp_path, "longbench_qa")
            asked = asked or len(server.asked)
        assert len(server.asked) == asked > 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["base_url"] == address
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"secret" not in file.read_bytes(), file


def test_a_server_that_fails_ends_the_run_and_the_next_one_goes_on(
    data: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    right = oracle(data[1])
    good = 4

    def answer(prompt: str, body: dict[str, Any]) -> str | None:
        if len(server.asked) <= good:
            return right(prompt, body)
        server.well = False
        return None

    with chat_server(answer) as server:
        with pytest.raises(UserError, match=r"longbench_qa narrativeqa: .*500.*goes on from here"):
            run(server, data[0], tmp_path, "longbench_qa")
        server.answer, server.well = right, True
        server.asked.clear()
        assert scores(run(server, data[0], tmp_path, "longbench_qa"))["longbench_qa"]["average"] == 100.0
        assert len(server.asked) == 6 * QUESTIONS - good


def test_sampling_is_seeded_and_greedy_is_not_sampled(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(oracle(data[1])) as server:
        run(server, data[0], tmp_path, "longbench_v2,longbench_qa", seeds=(3, 4))
    sampled = [body for body in server.asked if body["temperature"] > 0]
    assert {(body["temperature"], body["seed"]) for body in sampled} == {(0.1, 3), (0.1, 4)}
    assert len(sampled) == 2 * QUESTIONS
    assert {body["max_tokens"] for body in server.asked} == {64}


def test_prompts_fill_their_length_and_hold_the_evidence(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    from solopo_nemo.evaluation.models import EvaluatedModel

    with chat_server(oracle(data[1])) as server:
        model = EvaluatedModel(ModelSettings("m", server.url, tokenizer=ASSET, window=4096), tmp_path)
        settings = SuiteSettings(data[0], lengths=(1024, 2048), depths=(0, 50, 100), max_new_tokens=64)
        (ruler,), (needles,) = find_suites("ruler_qa"), find_suites("niah_plus")
        for cell in ruler.cells(model, settings):
            for question in cell.questions:
                tokens = model.tokens(question.prompt)
                assert cell.labels["length"] - 64 - 150 < tokens <= cell.labels["length"] - 64
                assert f"founded by {question.answers[0]}" in question.prompt
        for cell in needles.cells(model, settings):
            for question in cell.questions:
                text = question.prompt[: question.prompt.index("Question:")]
                place = text.index(f"founded by {question.answers[0]}") / len(text)
                assert abs(100 * place - cell.labels["depth"]) < 25


def test_a_document_beyond_the_window_loses_its_middle(tmp_path: Path) -> None:
    from solopo_nemo.evaluation.documents import fitted
    from solopo_nemo.evaluation.models import EvaluatedModel

    document = "START " + " ".join(str(number) for number in range(5000)) + " END"
    with chat_server(lambda prompt, body: "") as server:
        model = EvaluatedModel(ModelSettings("m", server.url, tokenizer=ASSET, window=1000), tmp_path)
    prompt, tokens = fitted(model, lambda text: f"Read.\n{text}\nWhy?", document, 100)
    assert 850 < tokens <= 900 and model.tokens(prompt) == tokens
    assert prompt.startswith("Read.\nSTART 0 1 2") and prompt.endswith("4999 END\nWhy?")
    whole, _ = fitted(model, lambda text: f"Read.\n{text}\nWhy?", "short", 100)
    assert whole == "Read.\nshort\nWhy?"


def test_a_folder_holds_one_model(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(oracle(data[1])) as server:
        run(server, data[0], tmp_path, "longbench_v2")
    with chat_server(oracle(data[1])) as elsewhere:
        run(elsewhere, data[0], tmp_path, "longbench_v2")
        assert not elsewhere.asked, "the same model at another address"
    with chat_server(oracle(data[1])) as other, pytest.raises(UserError, match="another model that the server gave"):
        other.name = "another model"
        run(other, data[0], tmp_path, "longbench_v2")


@pytest.mark.slow
def test_models_are_compared_question_by_question(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(lambda prompt, body: "") as server:
        weak = run(server, data[0], tmp_path / "weak")
    with chat_server(oracle(data[1])) as server:
        strong = run(server, data[0], tmp_path / "strong", lengths=(1024,))
    summary = as_json([weak, strong])
    assert summary["models"] == ["m (weak)", "m (strong)"]
    view = summary["suites"]["longbench_qa"]["average"]
    assert view["gains"]["m (strong)"] == {"value": 100.0, "low": 100.0, "high": 100.0, "questions": 36}
    # lengths that only one of them has are no part of the difference
    assert summary["suites"]["ruler_qa"]["squad, 2K"]["gains"]["m (strong)"] is None
    page = write_report([weak, strong], tmp_path / "page").read_text(encoding="utf-8")
    assert "m (strong) less m (weak)" in page and "▲" in page
    pictures = set(re.findall(r'(?:src|srcset)="([^"]+\.png)"', page))
    assert pictures == {path.name for path in (tmp_path / "page").glob("*.png")} and pictures


@pytest.mark.parametrize(
    ("suite", "file", "field", "value", "named"),
    [
        ("longbench_qa", "longbench_qa/qasper.jsonl", "answers", [], "qasper.jsonl:1: field answers"),
        ("longbench_qa", "longbench_qa/qasper.jsonl", "context", 3, "qasper.jsonl:1: field context"),
        ("longbench_v2", "longbench_v2/data.jsonl", "difficulty", "so-so", "data.jsonl:1: field difficulty"),
        ("longbench_v2", "longbench_v2/data.jsonl", "answer", "E", "data.jsonl:1: field answer"),
        ("ruler_qa", "ruler_qa/squad.jsonl", "supporting", [], "squad.jsonl:1"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_asked(
    data: tuple[Path, dict[str, str]], tmp_path: Path, suite: str, file: str, field: str, value: Any, named: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data[0], folder)
    first, *rest = (folder / file).read_text().splitlines()
    (folder / file).write_text("\n".join([json.dumps(json.loads(first) | {field: value}), *rest]) + "\n")
    with chat_server(lambda prompt, body: "") as server, pytest.raises(UserError, match=re.escape(named)):
        run(server, folder, tmp_path / "out", suite)
    assert not server.asked


def test_missing_data_say_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with chat_server(lambda prompt, body: "") as server:
        for suite, file in (
            ("ruler_qa", "ruler_qa/squad.jsonl"),
            ("longbench_qa", "longbench_qa/narrativeqa.jsonl"),
            ("longbench_v2", "longbench_v2/data.jsonl"),
        ):
            with pytest.raises(UserError, match=re.escape(f"put it at {tmp_path / file}")):
                run(server, tmp_path, tmp_path / "out", suite)


def test_what_hinders_a_download_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_split(*_: Any, **__: Any) -> None:
        raise ValueError("Unknown split 'test'.\nShould be one of ['train']")

    monkeypatch.setattr("datasets.load_dataset", unknown_split)
    with pytest.raises(UserError, match=r"put it at .*failed: Unknown split 'test'\. Should be one of \['train'\]$"):
        find_source(tmp_path, "suite", "name", "owner/data", None, "test")


def test_a_length_beyond_the_window_says_how_to_extend_it(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with (
        chat_server(lambda prompt, body: "") as server,
        pytest.raises(UserError, match=r"8192 tokens are beyond the model's window of 4096"),
    ):
        run(server, data[0], tmp_path, "ruler_qa", lengths=(1024, 8192))


def test_a_comparison_says_what_else_differs(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with chat_server(oracle(data[1])) as server:
        one = run(server, data[0], tmp_path / "one", "longbench_qa,longbench_v2")
        two = run(server, data[0], tmp_path / "two", "longbench_qa", max_new_tokens=32, limit=4, literal=True)
    assert differences([one, one], ["a", "b"]) == []
    assert differences([one, two], ["a", "b"]) == [
        "longbench_qa: answer_rule is 2 for a and literal for b in 6 cells, such as 2wikimqa",
        "longbench_qa: max_new_tokens is 64 for a and 32 for b in 6 cells, such as 2wikimqa",
        "longbench_qa: prompts or gold answers differ in 6 cells, such as 2wikimqa",
        "longbench_qa: questions is 6 for a and 4 for b in 6 cells, such as 2wikimqa",
        "longbench_v2: only a has it",
    ]
    page = write_report([one, two], tmp_path / "page", differences([one, two], ["a", "b"]))
    assert "longbench_v2: only a has it" in page.read_text()


@pytest.mark.parametrize(
    ("suite", "file"),
    [("longbench_qa", "longbench_qa/qasper"), ("longbench_v2", "longbench_v2/data"), ("ruler_qa", "ruler_qa/squad")],
)
def test_a_bad_row_is_refused_or_left_out_and_named(
    data: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture, suite: str, file: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data[0], folder)
    path = folder / f"{file}.jsonl"
    path.write_text(path.read_text() + '{"id": "bad"}\n')
    with chat_server(oracle(data[1])) as server:
        with pytest.raises(UserError, match=rf"{path.name}:\d+: .*--skip-bad"):
            run(server, folder, tmp_path / "out", suite, lengths=(1024,))
        measured = run(server, folder, tmp_path / "out", suite, lengths=(1024,), skip_bad=True)
    assert set(measured.suites[suite]["value"]) == {1.0}
    (line,) = [one.getMessage() for one in caplog.records if "left out: " in one.getMessage()]
    assert f"{path.name}:" in line


def test_answers_that_are_cut_or_refused_are_counted_and_asked_again(
    data: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first question of Qasper is refused; the second is cut within its closing line, the third after it."""
    right = oracle(data[1])

    def answer(prompt: str, body: dict[str, Any]) -> Any:
        number = re.search(r"qasper\D*(\d)", prompt)
        place = int(number.group(1)) if number else 9
        if place == 0:
            return 400, "maximum context length is 8192 tokens"
        text = right(prompt, body)
        return {1: (text, "length"), 2: (f"{text}\nBecause", "length")}.get(place, text)

    with chat_server(answer) as server:
        run(server, data[0], tmp_path, "longbench_qa")
        cell = json.loads((tmp_path / "cells" / "longbench_qa" / "qasper.json").read_text())
        assert [*cell["unanswered"].values()] == ["the server answers 400 (maximum context length is 8192 tokens)"]
        assert [one["f1"] for one in cell["samples"]] == [0.0, *[1.0] * (QUESTIONS - 2)]
        assert [one.get("reason") for one in cell["samples"]] == ["length", "length", *[None] * (QUESTIONS - 3)]
        lines = [record.getMessage() for record in caplog.records if record.name == "solopo_nemo"]
        assert len(lines) == 2 and "2 of 36 answers reached" in lines[0] + lines[1]
        assert any(
            re.search(r"1 of 36 answers are left out .*maximum context length is N tokens", one) for one in lines
        )
        server.asked.clear()
        server.answer = right
        measured = run(server, data[0], tmp_path, "longbench_qa")
        assert len(server.asked) == 1
        assert scores(measured)["longbench_qa"]["qasper"] == pytest.approx(100 * (QUESTIONS - 1) / QUESTIONS, abs=1e-3)
