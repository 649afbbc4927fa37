from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import pytest
from samples import QWEN, RowWriter, TokenizerMaker, musique_rows, train_tokenizer, with_template
from transformers import PreTrainedTokenizerFast

from solopo_nemo.builders.contexts.build import build_contexts
from solopo_nemo.builders.contexts.counting import TokenCounter
from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.data.normal_form import holds, normalize, searchable
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.triplets import Needs, read_triplets
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import beside

SHORT, LONG = 900, 2500


def build(
    source: Path, tokenizer: PreTrainedTokenizerFast, *, out: str = "out.jsonl", **settings: Any
) -> tuple[dict[str, Any], Path]:
    path = source.with_name(out)
    targets = {"short_tokens": SHORT, "long_tokens": LONG} | settings
    return build_contexts(BuildSettings(source, path, **targets), TripletEncoder(tokenizer)), path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passages(prompt: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Title and text of each passage, parsed from the written prompt."""
    body = prompt[0]["content"].split("\n\nQuestion: ")[0]
    blocks = re.split(r"(?:^|\n\n)Passage \d+:\n", body)[1:]
    return [(title, text) for title, _, text in (block.partition("\n") for block in blocks)]


def check_row(
    row: dict[str, Any],
    source: dict[str, Any],
    pool: Set[tuple[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    targets: tuple[int, int] = (SHORT, LONG),
) -> None:
    """Check one written row against its source by independent means."""
    title, text = max(pool, key=lambda paragraph: len(paragraph[1]))
    largest = len(tokenizer(f"Passage 99:\n{title}\n{text}\n\n", add_special_tokens=False).input_ids)
    support = {(p["title"], p["paragraph_text"].rstrip()) for p in source["paragraphs"] if p["is_supporting"]}
    answers = [searchable(answer) for answer in [source["answer"], *source["answer_aliases"]]]
    contexts = []
    for name, target in zip(("short", "long"), targets, strict=True):
        tokens = len(tokenizer.apply_chat_template(row[f"prompt_{name}"], add_generation_prompt=True))
        assert tokens == row["meta"][f"{name}_tokens"]
        assert target - largest < tokens <= target
        assert source["question"] in row[f"prompt_{name}"][0]["content"]
        found = passages(row[f"prompt_{name}"])
        assert len({text for _, text in found}) == len(found), "a duplicate"
        assert support <= set(found)
        distractors = set(found) - support
        assert distractors <= pool
        for title, text in distractors:
            assert not holds(searchable(f"{title} {text}"), answers), "a leak"
        contexts.append(set(found))
    assert contexts[0] < contexts[1]


def other_paragraphs(rows: list[dict[str, Any]], own: str) -> set[tuple[str, str]]:
    return {(p["title"], p["paragraph_text"]) for row in rows if row["id"] != own for p in row["paragraphs"]}


@pytest.mark.parametrize("template", ["qwen", "llama", "no_end_token"])
def test_contexts_meet_their_targets_and_are_nested(
    template: str, write_rows: RowWriter, make_tokenizer: TokenizerMaker
) -> None:
    rows, tokenizer = musique_rows(12), make_tokenizer(template)
    summary, out = build(write_rows(rows), tokenizer)
    assert (summary["in"], summary["out"], summary["rejected"], summary["dropped"]) == (12, 12, 0, 0)
    written = lines(out)
    for row, source in zip(written, rows, strict=True):
        assert list(row) == ["id", "question", "answers", "prompt_short", "prompt_long", "meta"]
        assert row["answers"] == [source["answer"], *source["answer_aliases"]]
        check_row(row, source, other_paragraphs(rows, row["id"]), tokenizer)
    assert summary["short_tokens"]["mean"] == round(sum(r["meta"]["short_tokens"] for r in written) / 12, 2)
    orders = [[text for _, text in passages(row["prompt_long"])] for row in written]
    evidence = [order.index(rows[i]["paragraphs"][0]["paragraph_text"]) for i, order in enumerate(orders)]
    assert len(set(evidence)) > 3, "the order is shuffled"


def test_the_result_depends_on_the_seed_and_not_on_the_order(
    write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = musique_rows(12)
    source = write_rows(rows)
    first = build(source, tokenizer)[1].read_bytes()
    assert build(source, tokenizer, out="again.jsonl")[1].read_bytes() == first
    assert build(source, tokenizer, out="other.jsonl", seed=1)[1].read_bytes() != first
    some = build(source, tokenizer, out="some.jsonl", limit=4)[1].read_bytes()
    assert first.startswith(some)
    assert some.count(b"\n") == 4
    turned = build(write_rows(rows[::-1], "turned.jsonl"), tokenizer, out="turned_out.jsonl")[1]
    assert turned.read_bytes().splitlines() == first.splitlines()[::-1]


def test_own_pool_and_answer_leaks(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = musique_rows(12)
    leak = f"Everybody knows {rows[0]['answer']}. " + "It is so. " * 10
    texts = [p["paragraph_text"] for row in rows[1:] for p in row["paragraphs"]]
    # the evidence itself, a copy of a paragraph in other writing, and leaks
    texts += [p["paragraph_text"] for p in rows[0]["paragraphs"]] + [texts[0].upper(), leak, leak + "Truly."]
    pool = write_rows(({"title": f"P{i}", "paragraph_text": text} for i, text in enumerate(texts)), "pool.jsonl")
    source = write_rows(rows[:1])
    _, out = build(source, tokenizer, pool=(pool,))
    check_row(lines(out)[0], rows[0], {(f"P{i}", t) for i, t in enumerate(texts)}, tokenizer)
    leaks = write_rows([{"title": f"L{i}", "paragraph_text": f"{leak} {i}"} for i in range(90)], "l.jsonl")
    settings = {"pool": (leaks,)}
    with pytest.raises(UserError, match=r"no context can be built: .* give a --pool"):
        build(source, tokenizer, **settings)
    assert build(source, tokenizer, **settings, allow_answer_leak=True)[0]["out"] == 1


def test_gold_pairs_are_triplets(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = musique_rows(12)
    summary, out = build(write_rows(rows), tokenizer, gold_pairs=True)
    needs = Needs(("short_chosen", "short_rejected", "long_chosen"))
    triplets = list(read_triplets(out, needs))
    assert len(triplets) == 12
    assert summary["pair_kinds"] == {"name": 12}
    for row, source in zip(lines(out), rows, strict=True):
        assert row["chosen"].endswith(f"The answer is: {source['answer']}")
        assert all(p["title"] in row["chosen"] for p in source["paragraphs"] if p["is_supporting"])
        wrong = row["rejected"].split("The answer is: ")[1]
        assert wrong in row["prompt_long"][0]["content"]
        assert normalize(source["answer"]) not in normalize(row["rejected"])


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no id": (lambda row: row.pop("id"), "field id: missing"),
    "no question": (lambda row: row.pop("question"), "field question: missing"),
    "empty question": (lambda row: row.update(question=" "), "field question: is empty"),
    "answer of a wrong type": (lambda row: row.update(answer=3), "field answer: is a number, must be a string"),
    "aliases of a wrong type": (lambda row: row.update(answer_aliases="x"), "field answer_aliases: is a string"),
    "no paragraphs": (lambda row: row.update(paragraphs=[]), "field paragraphs: is empty"),
    "no support": (lambda row: [p.update(is_supporting=False) for p in row["paragraphs"]], "none has is_supporting"),
    "no mark of support": (lambda row: row["paragraphs"][2].pop("is_supporting"), "paragraphs[2]: field is_supporting"),
    "support of a wrong type": (lambda row: row["paragraphs"][2].update(is_supporting="no"), "must be true or false"),
    "empty text": (lambda row: row["paragraphs"][1].update(paragraph_text=""), "paragraphs[1].paragraph_text: is em"),
    "no title": (lambda row: row["paragraphs"][1].pop("title"), "paragraphs[1]: field title: missing"),
    "answer without support": (lambda row: row.update(answer="Atlantis", answer_aliases=[]), "in no supporting parag"),
    "repeated id": (lambda row: row.update(id="q0"), "'q0' was used by an earlier row"),
    "half a surrogate pair": (lambda row: row.update(question="\ud800?"), "field question: half a surrogate pair"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_bad_rows_stop_the_run_or_are_rejected(
    spoil: Callable[[dict[str, Any]], Any], message: str, write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = musique_rows(12)
    spoil(rows[3])
    source = write_rows(rows)
    with pytest.raises(UserError) as error:
        build(source, tokenizer, limit=5)
    assert f"{source}:4: " in str(error.value)
    assert message in str(error.value)
    assert "--skip-bad" in str(error.value)
    assert [file.name for file in source.parent.iterdir()] == [source.name]
    summary, out = build(source, tokenizer, skip_bad=True, limit=5)
    assert (summary["in"], summary["out"], summary["rejected"], summary["dropped"]) == (5, 4, 1, 0)
    (rejected,) = lines(beside(out, "rejects"))
    assert message in rejected["error"]
    assert rejected["row"] == rows[3]


def test_a_truncated_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = tmp_path / "cut.jsonl.gz"
    source.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in musique_rows(40)).encode())[:-3000])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz:\d+: truncated or damaged gzip"):
        build(source, tokenizer)
    summary, out = build(source, tokenizer, skip_bad=True)
    assert summary["rejected"] == 1
    assert summary["in"] == summary["out"] + 1 == len(lines(out)) + 1


def test_rules_that_drop_a_question(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = musique_rows(12)
    rows[2]["answerable"] = False
    rows[5]["paragraphs"][0]["paragraph_text"] += " very" * SHORT
    summary, out = build(write_rows(rows), tokenizer)
    assert summary["dropped_by_rule"] == {"evidence_too_long": 1, "unanswerable": 1}
    assert summary["in"] == summary["out"] + summary["dropped"] == 12
    assert [row["id"] for row in lines(beside(out, "dropped"))] == ["q2", "q5"]
    build(write_rows(musique_rows(12)), tokenizer)
    assert not beside(out, "dropped").exists(), "the list of an earlier run is gone"


def test_settings_that_cannot_be(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    source = write_rows(musique_rows(3))
    with pytest.raises(UserError, match="short target must be positive and below"):
        build(source, tokenizer, short_tokens=LONG)
    with pytest.raises(UserError, match="--limit 0"):
        build(source, tokenizer, limit=0)
    with pytest.raises(UserError, match=r"pool\.jsonl:1: field title: missing"):
        build(source, tokenizer, pool=(write_rows([{"paragraph_text": "x"}], "pool.jsonl"),))
    with pytest.raises(UserError, match="no questions in it"):
        build(write_rows([], "none.jsonl"), tokenizer)


def test_a_pool_that_is_too_small(write_rows: RowWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = musique_rows(3)
    source = write_rows(rows)
    with pytest.raises(UserError, match=r"--long-tokens 1000000: the 24 paragraphs .* have (\d+) tokens") as error:
        build(source, tokenizer, long_tokens=10**6)
    assert [file.name for file in source.parent.iterdir()] == [source.name]
    found = re.search(r"have (\d+) tokens", str(error.value))
    assert found is not None
    paragraphs = [f"{p['title']}\n{p['paragraph_text']}\n\n" for row in rows for p in row["paragraphs"]]
    prompt = "".join(f"Passage {number}:\n{text}" for number, text in enumerate(paragraphs, start=1))
    assert int(found.group(1)) == len(tokenizer(prompt, add_special_tokens=False).input_ids)
    # enough in all, but a question's own paragraphs do not count
    with pytest.raises(UserError, match="with every unrelated paragraph"):
        build(source, tokenizer, long_tokens=int(found.group(1)))
    summary, out = build(source, tokenizer, pool=(source, write_rows(musique_rows(40)[3:], "more.jsonl")))
    assert summary["pool"] == 40 * 8 and summary["out"] == len(lines(out)) == 3


def test_a_tokenizer_without_template(write_rows: RowWriter, make_tokenizer: TokenizerMaker) -> None:
    with pytest.raises(UserError, match=r"tokenizer: .*no chat template"):
        build(write_rows(musique_rows(3)), make_tokenizer(None))


def test_a_tokenizer_whose_counts_do_not_add_up(
    write_rows: RowWriter, make_tokenizer: TokenizerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that span passages make the sum of counts wrong; the exact count mends it."""
    rows, tokenizer = musique_rows(12), make_tokenizer("qwen")
    for wrong in (0.9, 1.1):
        with monkeypatch.context() as patch:
            true_count = TokenCounter.passage
            patch.setattr(TokenCounter, "passage", lambda s, p, n, w=wrong, c=true_count: round(c(s, p, n) * w))
            _, out = build(write_rows(rows), tokenizer, limit=4)
        for row, source in zip(lines(out), rows, strict=False):
            check_row(row, source, other_paragraphs(rows, row["id"]), tokenizer)


@pytest.mark.parametrize("questions", [12, pytest.param(100, marks=pytest.mark.long)])
def test_real_musique(questions: int, shared_data: Path, tmp_path: Path) -> None:
    names = ("musique_train_official_100.jsonl.gz", "musique_paragraph_pool.jsonl.gz")
    source, pool = (shared_data / name for name in names)
    rows, paragraphs = (
        [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()] for path in (source, pool)
    )
    texts = [p["paragraph_text"] for p in paragraphs]
    tokenizer = with_template(train_tokenizer(texts[:2500], 12_000), QWEN)
    settings = BuildSettings(source, tmp_path / "out.jsonl", 1100, 7500, pool=(pool,), gold_pairs=True, limit=questions)
    summary = build_contexts(settings, TripletEncoder(tokenizer))
    assert summary["in"] == questions == summary["out"] + summary["dropped"]
    assert set(summary["dropped_by_rule"]) <= {"evidence_too_long"}
    assert summary["out"] >= 0.9 * questions
    assert summary["pair_kinds"]["no_answer"] < 0.2 * questions
    sources = {row["id"]: row for row in rows}
    candidates = {(p["title"], p["paragraph_text"].rstrip()) for p in paragraphs}
    for row in lines(tmp_path / "out.jsonl"):
        check_row(row, sources[row["id"]], candidates, tokenizer, (1100, 7500))
