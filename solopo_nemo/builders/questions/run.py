"""A run that writes questions about documents: read, cut, write, answer, filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.builders.contexts.question import BadRow, Paragraph, refuse_bad_rows
from solopo_nemo.builders.pairs.backend import WRITTEN, Backend, Sampling, kind_of
from solopo_nemo.builders.pairs.meter import Meter
from solopo_nemo.builders.pairs.run import opened
from solopo_nemo.builders.pairs.sampler import REFUSED, Entries, Sampler
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.builders.pairs.store import SampleStore
from solopo_nemo.builders.questions.candidates import Candidate, Rejected, read_candidate
from solopo_nemo.builders.questions.documents import Documents
from solopo_nemo.builders.questions.groups import Group, make_groups
from solopo_nemo.builders.questions.passages import BOILERPLATE, NEAR_DUPLICATE, Passage, Passages, near_duplicates
from solopo_nemo.builders.questions.prompts import Prompts
from solopo_nemo.builders.questions.readers import Document
from solopo_nemo.data.normal_form import RULE
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.runtime.errors import UserError, require, require_at_least
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.runtime.output import atomic_text, beside, check_writable, keep_source, write_json_line
from solopo_nemo.runtime.progress import with_progress

EVIDENCE, RECALL = "evidence", "recall"
NOT_WHOLE, WRONG, KNOWN, DUPLICATE = "not_whole", "wrong_from_evidence", "known_without_passages", "duplicate"


@dataclass(frozen=True)
class QuestionSettings:
    """Settings of a run.

    Attributes:
        source: Files, folders or datasets with the documents.
        out: Output file of the questions, JSON lines.
        subset: Subset of a dataset; None if it has only one.
        split: Split of a dataset; None if it has only one.
        prompts: Folder with prompts that replace the project's own.
        passage_tokens: Most tokens of a passage.
        limit: Most questions that are written; None asks about every passage.
        skip_bad: Write unreadable documents to `<out>.rejects.jsonl` and continue.
    """

    source: tuple[Path | str, ...]
    out: Path
    subset: str | None = None
    split: str | None = None
    prompts: Path | None = None
    passage_tokens: int = 256
    limit: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        require(self.out.suffix == ".jsonl", f"--out {self.out}: must end in .jsonl")
        require_at_least(32, passage_tokens=self.passage_tokens)
        require_at_least(1, limit=self.limit)
        for source in self.source:
            keep_source(source, self.out)


class _Run:
    """The stages that ask a model. Each reuses the stored answers."""

    def __init__(self, backend: Backend, store: SampleStore, prompts: Prompts, encoder: TripletEncoder) -> None:
        self._backend, self._store, self._prompts, self._encoder = backend, store, prompts, encoder
        self.dropped: list[dict[str, Any]] = []
        self.asked = self.reused = 0

    def write(self, groups: Sequence[Group]) -> list[Candidate]:
        """Write a question for each group; return those that the checks against the passages keep."""

        def asked(number: int) -> Asked:
            return self._asked(groups[number].id, WRITTEN, "write", (), groups[number].passages)

        kept = []
        for number, entries, why in self._ask(len(groups), asked, WRITTEN, "writing", _is_whole):
            if not _is_whole(entries):
                self._drop(groups[number].id, REFUSED if entries[WRITTEN] is None else NOT_WHOLE, reason=why)
                continue
            (reply,) = self._store.texts(asked(number), WRITTEN)[1]
            try:
                kept.append(read_candidate(reply, groups[number]))
            except Rejected as error:
                self._drop(groups[number].id, str(error), reply=reply)
        return kept

    def answer(self, candidates: Sequence[Candidate], side: str) -> list[Candidate]:
        """Answer the questions from their evidence or without; return those that are right, or never right."""

        def asked(number: int) -> Asked:
            one = candidates[number]
            prompt, shown = ("answer", one.evidence) if side == EVIDENCE else (RECALL, ())
            return self._asked(one.id, side, prompt, (one.answer,), shown, one.question)

        def accepts(entries: Entries) -> bool:
            entry = entries[side]
            if entry is None or not entry.finished:
                return False
            return 2 * entry.right > entry.samples if side == EVIDENCE else not entry.right

        kept = []
        for number, entries, why in self._ask(len(candidates), asked, side, f"answering, {side}", accepts):
            entry = entries[side]
            if accepts(entries):
                kept.append(candidates[number])
            elif entry is None:
                self._drop(candidates[number].id, REFUSED, candidates[number], reason=why)
            else:
                rule = (WRONG if side == EVIDENCE else KNOWN) if entry.finished else NOT_WHOLE
                self._drop(candidates[number].id, rule, candidates[number], right=entry.right, samples=entry.samples)
        return kept

    def without_duplicates(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Drop a question that repeats an earlier one: nearly the same words, and the same answer."""
        kept = []
        duplicates = near_duplicates(((one.question, one.answer) for one in candidates), shingle=2)
        for one, duplicate in zip(candidates, duplicates, strict=True):
            if duplicate:
                self._drop(one.id, DUPLICATE, one)
            else:
                kept.append(one)
        return kept

    def _asked(
        self,
        id_: str,
        side: str,
        prompt: str,
        answers: tuple[str, ...],
        paragraphs: Iterable[Paragraph],
        text: str = "",
    ) -> Asked:
        messages = self._prompts.render(prompt, paragraphs, text)
        tokens = self._encoder.count_text(str(messages[0]["content"]))
        return Asked(id_, {side: messages}, answers, {f"{side}_tokens": tokens})

    def _ask(
        self, size: int, asked: Callable[[int], Asked], side: str, what: str, accepts: Callable[[Entries], bool]
    ) -> Iterable[tuple[int, Entries, str]]:
        """Ask all; yield the number, the counts of the answers, and why it was refused, in order.

        A prompt is made when it is asked, because all prompts are several times the corpus.
        """
        sampler = Sampler(size, asked, self._store, self._backend, [side], size, accepts)
        with Meter(size, size, what, self._backend.cost) as meter:
            sampler.run(meter)
        self.asked, self.reused = self.asked + sampler.asked, self.reused + sampler.reused
        for number, entries in sorted(sampler.entries.items()):
            yield number, entries, sampler.refusals.get((number, side), "")

    def _drop(self, id_: str, rule: str, candidate: Candidate | None = None, **facts: Any) -> None:
        row = {} if candidate is None else candidate.row()
        self.dropped.append(
            {"id": id_, "rule": rule} | {name: fact for name, fact in facts.items() if fact != ""} | row
        )


def _is_whole(entries: Entries) -> bool:
    entry = entries[WRITTEN]
    return entry is not None and entry.finished > 0


def build_questions(
    settings: QuestionSettings,
    sampling: Sampling,
    encoder: TripletEncoder,
    make_backend: Callable[[Sampling], Backend],
) -> dict[str, Any]:
    """Write questions about documents, and keep those that pass every filter. A second call resumes.

    1. Read the documents, and cut them into passages. Nothing is asked before all of them are read.
    2. Ask for a question about each group of passages; check its quotes and its answer against the passages.
    3. Answer it from its evidence alone: more than half of the answers have to be right.
    4. Answer it without a passage: no answer may be right.
    5. Leave out duplicates, and write the files.

    Args:
        settings: Input and output.
        sampling: Sampling settings; `samples` is the number of answers in steps 3 and 4.
        encoder: Encoder with the tokenizer that counts the tokens.
        make_backend: Creates the backend; called after the documents have been read.

    Returns:
        The summary. `in`, the groups asked about, is `out` and `dropped` together.

    Raises:
        UserError: A document cannot be read and `skip_bad` is off, the stored answers have other settings, the backend
            fails, or no question is kept.
    """
    prompts = Prompts(settings.prompts)
    check_writable(settings.out.parent, "--out")
    documents = Documents(settings.source, settings.subset, settings.split, settings.out)
    good: list[Document] = []
    bad: list[BadRow] = []
    for one in with_progress(documents, "reading"):
        if isinstance(one, BadRow):
            bad.append(one)
        else:
            good.append(one)
    refuse_bad_rows([one.error for one in bad], settings.skip_bad)
    require(
        bool(good), f"{settings.source[0]}: no document in it can be read: {bad[0].error if bad else 'it is empty'}"
    )
    passages = Passages(good, settings.passage_tokens, encoder.count_text)
    groups = make_groups(passages.kept, sampling.seed, encoder.count_text)[: settings.limit]
    require(bool(groups), f"{settings.source[0]}: no passage is left to ask about: {_counts(passages)}")
    with opened(settings.out, sampling, make_backend) as (backend, store):
        run = _Run(backend, store, prompts, encoder)
        written = run.write(groups)
        right = run.answer(written, EVIDENCE)
        kept = run.without_duplicates(run.answer(right, RECALL))
        not_whole = store.reasons()
    rules = Counter(row["rule"] for row in run.dropped)
    refused = Counter(kind_of(row["reason"]) for row in run.dropped if row["rule"] == REFUSED)
    summary = {
        "documents": {"read": len(good), "rejected": len(bad), "furniture": sum(one.furniture for one in good)},
        "other_files": dict(documents.others),
        "passages": _counts(passages),
        "in": len(groups),
        "out": len(kept),
        "dropped": len(run.dropped),
        "dropped_by_rule": dict(sorted(rules.items())),
        "evidence": {str(size): count for size, count in sorted(Counter(len(one.evidence) for one in kept).items())},
        "prompts": {"sampled": run.asked, "reused": run.reused},
        "not_whole": not_whole,
        "refused": dict(refused),
        "cut_prompts": backend.cut_prompts,
        "cost": backend.cost.counts,
        "answer_rule": str(RULE),
    }
    _write(settings.out, kept, run.dropped, bad, passages, summary)
    if not kept:
        reasons = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
        raise UserError(
            f"{settings.out}: no question is kept ({reasons}): {beside(settings.out, 'dropped')} has what the model "
            "wrote; take a larger model, or other --prompts"
        )
    return summary


def _counts(passages: Passages) -> dict[str, int]:
    left_out = Counter(reason for _, reason in passages.left_out)
    return {"kept": len(passages.kept), **{name: left_out[name] for name in (BOILERPLATE, NEAR_DUPLICATE)}}


def _write(
    out: Path,
    kept: Sequence[Candidate],
    dropped: Sequence[dict[str, Any]],
    bad: Sequence[BadRow],
    passages: Passages,
    summary: dict[str, Any],
) -> None:
    def left_out(one: tuple[Passage, str]) -> dict[str, Any]:
        return one[0].row() | {"reason": one[1]}

    tables: dict[str, Iterable[dict[str, Any]]] = {
        "passages": (passage.row() for passage in passages.kept),
        "left_out": map(left_out, passages.left_out),
        "dropped": dropped,
        "rejects": ({"error": one.error} for one in bad),
    }
    with ExitStack() as files:
        # the files are closed in reverse order, so the questions appear last
        stream = files.enter_context(atomic_text(out, keep_empty=False))
        for one in kept:
            write_json_line(stream, one.row())
        write_json(out.with_name(f"{out.name}.report.json"), summary)
        for what, rows in tables.items():
            with atomic_text(beside(out, what), keep_empty=False) as stream:
                for row in rows:
                    write_json_line(stream, row, ascii_only=what == "rejects")
