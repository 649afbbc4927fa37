from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import RowWriter, musique_rows

from solopo_nemo.builders.contexts.question import BadRow, Question
from solopo_nemo.builders.contexts.sources import FORMATS, read_pool, read_questions
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.data import json_rows
from solopo_nemo.runtime.errors import UserError


def hotpot_row(number: int = 0) -> dict[str, Any]:
    return {
        "_id": f"h{number}",
        "question": "Where was the author of Blue born?",
        "answer": "Oslo",
        "type": "bridge",
        "supporting_facts": [["Blue", 0], ["Ann", 1], ["Ann", 0]],
        "context": [
            ["Red", ["Red is a colour.", " It is warm."]],
            ["Blue", ["Blue is a book by Ann."]],
            ["Ann", ["Ann writes.", " She was born in Oslo."]],
            ["Empty", []],
        ],
    }


def squad_article() -> dict[str, Any]:
    qas = [
        {"id": "s0", "question": "Who won? ", "answers": [{"text": "Denver", "answer_start": 0}] * 2},
        {"id": "s1", "question": "Who lost?", "answers": [], "is_impossible": True},
    ]
    return {"title": "Super_Bowl", "paragraphs": [{"context": "Denver won.", "qas": qas}, {"context": "x", "qas": []}]}


def generic_row(**changes: Any) -> dict[str, Any]:
    supporting = ["The mill was built in 1911.", {"title": "Mill", "text": "It grinds corn."}]
    row = {
        "question": "When was the mill built?",
        "answers": ["1911"],
        "supporting": supporting,
        "distractors": ["No."],
    }
    return row | changes


def write_json(path: Path, value: Any) -> Path:
    text = json.dumps(value, indent=1).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def good(path: Path, schema: str | None = None) -> list[Question]:
    questions = list(read_questions(RowSource(path), schema))
    assert all(isinstance(question, Question) for question in questions), questions
    return [question for question in questions if isinstance(question, Question)]


def only_error(path: Path, schema: str | None = None) -> str:
    (bad,) = (item for item in read_questions(RowSource(path), schema) if isinstance(item, BadRow))
    assert "\n" not in bad.error
    return bad.error


@pytest.mark.parametrize("name", ["h.json", "h.json.gz", "h.jsonl"])
def test_hotpot(name: str, tmp_path: Path, write_rows: RowWriter) -> None:
    rows = [hotpot_row(0), hotpot_row(1)]
    path = write_rows(rows, name) if name == "h.jsonl" else write_json(tmp_path / name, rows)
    first, second = good(path)
    assert (first.id, second.id, first.answers) == ("h0", "h1", ("Oslo",))
    assert [p.title for p in first.supporting] == ["Blue", "Ann"]
    assert first.supporting[1].text == "Ann writes. She was born in Oslo."
    assert [p.title for p in first.others] == ["Red"], "paragraphs without text are no distractors"


def test_hotpot_as_datasets_has_it(write_rows: RowWriter) -> None:
    row = hotpot_row()
    row["id"] = row.pop("_id")
    row["context"] = {"title": [c[0] for c in row["context"]], "sentences": [c[1] for c in row["context"]]}
    row["supporting_facts"] = {"title": ["Blue", "Ann"], "sent_id": [0, 1]}
    assert good(write_rows([row])) == good(write_rows([hotpot_row()]))
    # 2WikiMultihopQA on the hub
    row["context"]["content"] = row["context"].pop("sentences")
    assert good(write_rows([row])) == good(write_rows([hotpot_row()]))


def test_2wiki_sentences_without_spaces_and_answers_that_are_implied(write_rows: RowWriter) -> None:
    row = hotpot_row() | {"answer": "yes", "evidences": []}
    row["context"][2][1] = ["Ann writes.", "She was born in Oslo."]
    (question,) = good(write_rows([row]))
    assert question.supporting[1].text == "Ann writes. She was born in Oslo."


@pytest.mark.parametrize("version", [{"version": "v2.0"}, {}])
def test_squad_official(version: dict[str, str], tmp_path: Path) -> None:
    won, lost = good(write_json(tmp_path / "squad.json", version | {"data": [squad_article()]}))
    assert (won.id, won.question, won.answers) == ("s0", "Who won?", ("Denver",))
    assert (won.supporting[0].title, won.supporting[0].text) == ("Super Bowl", "Denver won.")
    assert won.answerable
    assert not lost.answerable


@pytest.mark.parametrize("answers", [["Denver"], {"text": ["Denver"], "answer_start": [0]}, [{"text": "Denver"}]])
def test_squad_flat(answers: Any, write_rows: RowWriter) -> None:
    row = {"id": "s0", "title": "T", "context": "Denver won.", "question": "Who?", "answers": answers}
    (question,) = good(write_rows([row]))
    assert question.answers == ("Denver",)


def test_generic(write_rows: RowWriter) -> None:
    rows = [generic_row(), generic_row(id=7, answers="1911", distractors=None), generic_row(question="Mill when?")]
    first, second, third = good(write_rows(rows))
    assert [p.title for p in first.supporting] == ["", "Mill"]
    assert first.supporting[0].name == "The mill was built in 1911. ..."
    assert [p.text for p in first.others] == ["No."]
    assert (second.id, second.answers, second.others) == ("7", ("1911",), ())
    assert len({first.id, third.id}) == 2
    assert good(write_rows(rows[::-1]))[-1].id == first.id, "an id of its own does not depend on the place"


def test_saved_datasets_and_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(musique_rows(3))
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        assert [question.id for question in good(path)] == ["q0", "q1", "q2"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path, own_cache: None) -> Path:
    """A folder laid out like a dataset repository on the hub: two subsets, one with two splits."""
    folder = tmp_path / "org" / "questions"
    for name, rows in {
        "multi/train": musique_rows(4),
        "multi/validation": musique_rows(2),
        "other/train": [hotpot_row()],
    }.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files_of = {"multi": ("train", "validation"), "other": ("train",)}
    card = ["---", "configs:"]
    for subset, splits in files_of.items():
        card += [f"- config_name: {subset}", "  data_files:"]
        card += [line for s in splits for line in (f"  - split: {s}", f"    path: {subset}/{s}.jsonl")]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def test_what_datasets_loads_by_name(repository: Path) -> None:
    source = RowSource(repository, "multi", "validation")
    questions = list(read_questions(source))
    assert [question.id for question in questions if isinstance(question, Question)] == ["q0", "q1"]
    assert list(read_questions(source)) == questions, "it is read again and again"
    assert source.digest() == RowSource(repository, "multi", "validation").digest()
    assert source.digest() != RowSource(repository, "multi", "train").digest()
    for arguments, message in (
        ((), "multi"),
        (("multi",), "holds several splits: give --split, one of train, validation"),
        (("multi", "test"), "--subset and --split"),
        (("none", "train"), "--subset and --split"),
    ):
        with pytest.raises(UserError, match=message):
            RowSource(repository, *arguments)
    with pytest.raises(UserError, match="--subset and --split"):
        RowSource(repository / "multi" / "train.jsonl", split="validation")


def test_a_bad_row_of_a_dataset_has_its_name_and_number(tmp_path: Path, own_cache: None) -> None:
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    rows = musique_rows(3)
    rows[2]["question"] = ""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *_, bad = read_questions(RowSource(folder.parent))
    assert isinstance(bad, BadRow)
    assert bad.error == f"{folder.parent}: row 2: field question: is empty, must hold text"


def test_a_saved_dataset_with_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {name: datasets.Dataset.from_list(musique_rows(n)) for name, n in (("train", 3), ("test", 1))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert len(list(read_questions(RowSource(tmp_path / "saved", split="train")))) == 3
    with pytest.raises(UserError, match="several splits"):
        list(read_questions(RowSource(tmp_path / "saved")))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^nobody/nothing: `datasets` cannot load it \(.*Hub.*\): give a local path"
    ) as e:
        RowSource("nobody/nothing", split="train")
    assert "\n" not in str(e.value)
    for path in ("missing.jsonl", "a/b/c", "/nowhere/data", "org/file.json.gz"):
        with pytest.raises(UserError, match=f"^{path}: no such file or directory"):
            RowSource(path)


def test_pools_of_paragraphs_and_of_questions(tmp_path: Path, write_rows: RowWriter) -> None:
    def titles(path: Path) -> list[str]:
        return [paragraph.title for paragraph in read_pool(RowSource(path))]

    assert titles(write_rows([{"title": "A", "paragraph_text": "x"}, {"title": "B", "paragraph_text": "y"}])) == [
        "A",
        "B",
    ]
    assert titles(write_rows([{"text": "x"}, {"title": "B", "text": "y"}])) == ["", "B"]
    assert titles(write_rows([hotpot_row()])) == ["Blue", "Ann", "Red"]
    assert titles(write_json(tmp_path / "squad.json", {"data": [squad_article()]})) == ["Super Bowl", "Super Bowl"]
    assert titles(write_rows([])) == []
    with pytest.raises(UserError, match=r"rows\.jsonl:2: field title: missing"):
        titles(write_rows([{"title": "A", "paragraph_text": "x"}, {"paragraph_text": "y"}]))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .* \(body\): a pool has rows of title and paragraph_text"):
        titles(write_rows([{"body": "x"}]))
    with pytest.raises(UserError, match=r"rows\.jsonl:2: field question: missing"):
        row = hotpot_row(1)
        del row["question"]
        titles(write_rows([hotpot_row(), row]))


def test_json_files_of_other_forms(tmp_path: Path, write_rows: RowWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = musique_rows(5)
    wanted = good(write_rows(rows))
    assert good(write_json(tmp_path / "array.json", rows)) == wanted
    assert good(write_rows(rows, "lines.json")) == wanted
    assert good(write_json(tmp_path / "empty.json", [])) == []
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", 7)
    assert good(write_json(tmp_path / "array.json", rows[:2])) == wanted[:2]
    with pytest.raises(UserError, match="no such file"):
        good(tmp_path / "none.json")


def test_a_cut_or_broken_array(tmp_path: Path) -> None:
    path = write_json(tmp_path / "cut.json", musique_rows(3))
    path.write_bytes(path.read_bytes()[:-200])
    *read, bad = read_questions(RowSource(path))
    assert len(read) == 2
    assert isinstance(bad, BadRow)
    assert f"{path}: row 2: broken or truncated JSON" in bad.error
    path = write_json(tmp_path / "cut.json.gz", musique_rows(3))
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated or damaged gzip" in only_error(path)
    path = path.with_name("latin.json")
    path.write_bytes(
        json.dumps([*musique_rows(1), {"question": "e!"}, hotpot_row()]).replace("e!", "é").encode("latin-1")
    )
    assert f"{path}: row 1: not UTF-8 text (byte 0xe9)" in list(read_questions(RowSource(path)))[1].error
    assert "row 0: a JSON int: each element" in only_error(write_json(tmp_path / "numbers.json", [3]))


BAD_HOTPOT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no answer": (lambda row: row.pop("answer"), "field answer: missing"),
    "absent answer": (lambda row: row.update(answer="Rome"), "field answer: 'Rome' (or an alias) is in no supporting"),
    "unknown title": (lambda row: row["supporting_facts"].append(["Green", 0]), "'Green' is no title in context"),
    "no facts": (lambda row: row.update(supporting_facts=[]), "field supporting_facts: supporting_facts is empty"),
    "no pair": (lambda row: row["context"].append("Red"), "field context[4]: must be [title, sentences]"),
    "sentence": (
        lambda row: row["context"][0].__setitem__(1, "Red"),
        "field context[0][1]: must be a list of sentences",
    ),
    "evidence without text": (lambda row: row["context"][2].__setitem__(1, [" "]), "'Ann' is evidence"),
    "sides": (lambda row: row.update(context={"title": ["Red"], "sentences": []}), "must be lists of the same length"),
    "a string": (lambda row: row.update(context="Red"), "field context: must be a list"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_HOTPOT.values(), ids=BAD_HOTPOT)
def test_bad_hotpot_rows(spoil: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    rows = [hotpot_row(0), hotpot_row(1)]
    spoil(rows[1])
    path = write_json(tmp_path / "h.json", rows)
    error = only_error(path)
    assert f"{path}: row 1: " in error
    assert message in error


def test_bad_squad_articles(tmp_path: Path) -> None:
    def error(article: dict[str, Any]) -> str:
        return only_error(write_json(tmp_path / "s.json", {"data": [article]}))

    article = squad_article()
    article["paragraphs"][0]["qas"][0]["answers"][0] = {"answer_start": 0}
    assert "s.json: row 0: paragraphs[0].qas[0]: field answers[0]: field text: missing" in error(article)
    article = squad_article()
    article["paragraphs"][0]["context"] = None
    del article["paragraphs"][0]["qas"][1]
    assert "field context: missing" in error(article)
    article = squad_article()
    del article["paragraphs"][1]["qas"]
    assert "row 0: paragraphs[1]: field qas: missing" in error(article)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "field answers: is empty"),
        ({"answers": ["1912"]}, "field answers: '1912'"),
        ({"supporting": []}, "field supporting: supporting is empty"),
        ({"supporting": "text"}, "field supporting: must be a list"),
        ({"supporting": [{"title": "x"}]}, "field supporting[0]: field text: missing"),
        ({"distractors": [" "]}, "field distractors[0]: is empty"),
        ({"question": None}, "field question: missing"),
    ],
)
def test_bad_generic_rows(changes: dict[str, Any], message: str, write_rows: RowWriter) -> None:
    path = write_rows([generic_row(**changes)])
    error = only_error(path)
    assert f"{path}:1: " in error
    assert message in error


def test_the_schema_is_recognised_or_given(tmp_path: Path, write_rows: RowWriter) -> None:
    path = write_rows([{"question": "?", "passages": []}])
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: schema not recognised .*\(question, passages\): give --format"
    ):
        list(read_questions(RowSource(path)))
    assert "field answers: missing" in only_error(path, "generic")
    assert set(FORMATS) == {"musique", "hotpot", "2wiki", "squad", "generic"}
    (tmp_path / "first.jsonl").write_text("not JSON\n" + json.dumps(generic_row()) + "\n")
    bad, question = read_questions(RowSource(tmp_path / "first.jsonl"))
    assert isinstance(bad, BadRow)
    assert isinstance(question, Question)


@pytest.mark.parametrize("name", ["hotpotqa_distractor", "squad_xquad_en"])
def test_real_files(name: str, shared_data: Path) -> None:
    questions = good(shared_data / f"{name}.jsonl.gz")
    assert len(questions) > 400
    assert all(question.supporting for question in questions)
