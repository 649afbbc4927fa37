"""Inspection of a triplet or preference file: all problems, statistics, and a few samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from solopo_nemo.data.answers import is_right, rule_name, stated_answer
from solopo_nemo.data.fields import has, note_id, text_list
from solopo_nemo.data.json_rows import Row
from solopo_nemo.data.lengths import Lengths, compression_rate
from solopo_nemo.data.messages import answer_text
from solopo_nemo.data.normal_form import RULE, holds, searchable
from solopo_nemo.data.rows import read_rows
from solopo_nemo.data.tokenize import TripletEncoder

# rows are parsed one at a time, because read_triplets stops at the first problem
from solopo_nemo.data.triplets import COLUMNS, Needs, Triplet, parse_triplet
from solopo_nemo.data.turns import rewritten_turns
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.progress import with_progress

# required sequences of each kind of file, checked one by one so that one problem does not hide another
_WANTED = {
    "triplets": ("short_chosen", "short_rejected", "long_chosen", "long_rejected"),
    "preferences": ("long_chosen", "long_rejected"),
    "fine-tuning": ("long_chosen",),
}


_RULES = (rule_name(literal=False), rule_name(literal=True))


@dataclass
class Inspection:
    """The result of an inspection.

    Attributes:
        kind: `triplets`, `preferences` (one prompt) or `fine-tuning` (no rejected answers).
        unit: Unit of the lengths, `tokens` or `characters`.
        rows: Number of rows, good and bad.
        bad_rows: Number of rows with a problem.
        problems: One line for each problem, with file, line and field.
        remarks: One line for each warning that a run would give for a good row: text of special tokens, equal answers.
        lengths: Field -> lengths over the good rows. A single prompt has the name `prompt`.
        shares: Property -> share of the good rows, from 0 to 1.
        samples: A uniform random sample of good rows, in file order.
    """

    kind: str
    unit: str
    rows: int = 0
    bad_rows: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    samples: list[Triplet] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values."""
        short, long = self.lengths.get("prompt_short"), self.lengths.get("prompt_long")
        return {
            "kind": self.kind,
            "in": self.rows,
            "good": self.rows - self.bad_rows,
            "bad": self.bad_rows,
            "problems": len(self.problems),
            "remarks": len(self.remarks),
            "unit": self.unit,
            "lengths": {name: lengths.statistics() for name, lengths in self.lengths.items()},
            **({"rho": compression_rate(short, long)} if short and long else {}),
            "shares": self.shares,
        }


def inspect_file(path: Path, encoder: TripletEncoder | None = None, samples: int = 3, seed: int = 0) -> Inspection:
    """Inspect a whole file.

    Args:
        path: A source that `data.train` accepts.
        encoder: Encoder that counts tokens; None counts characters.
        samples: Number of rows to keep as samples.
        seed: Seed of the draw of these rows.

    Raises:
        UserError: The file is missing, empty or of unknown type.
    """
    found = Inspection(_kind(path), unit="characters" if encoder is None else "tokens")
    random = Random(seed)
    shares: dict[str, list[bool]] = {}
    seen: set[str] = set()
    kept: list[tuple[int, Triplet]] = []
    equal, earlier = 0, 0
    for row in with_progress(read_rows(path), "reading"):
        found.rows += 1
        triplet, problems = _check(row, found.kind, f"row-{found.rows - 1}", seen)
        ids: dict[str, list[int]] = {}
        if triplet is not None and not problems:
            try:
                ids = {} if encoder is None else encoder.encode([triplet], Needs(_WANTED[found.kind]))[0]
            except UserError as error:
                problems = [str(error)]
        if problems or triplet is None:
            found.bad_rows += 1
            found.problems += problems
            continue
        good = found.rows - found.bad_rows
        for name, length in _lengths(triplet, found.kind, ids):
            found.lengths.setdefault(name, Lengths()).add(length)
        if encoder is not None:
            special = encoder.special_text(triplet, ("chosen", "rejected"))
            found.remarks += [f"{text} is text of a special token, trained as letters" for text in special]
        if triplet.same_answers(ids):
            equal += 1
            found.remarks.append(f"{row.where}: chosen and rejected are the same answer, which teaches nothing")
        fields = row.value or {}
        for name, true in _properties(triplet, fields.get("answers")):
            shares.setdefault(name, []).append(true)
        meta = fields.get("meta")
        earlier += isinstance(meta, dict) and "sampled_on" in meta and meta.get("answer_rule") not in _RULES
        # reservoir sampling: every good row has the same probability
        if len(kept) < samples:
            kept.append((good, triplet))
        elif (place := random.randrange(good)) < samples:
            kept[place] = (good, triplet)
    require(found.rows > 0, f"{path}: no samples in it: give a file with at least one row")
    if equal and equal == found.rows - found.bad_rows:
        found.problems.append(f"{path}: chosen and rejected are the same answer in every row: nothing to prefer")
    if earlier:
        found.remarks.append(
            f"{path}: {earlier} pairs were chosen by an earlier answer rule than {RULE}, by which shares are counted: "
            "tools/sample_pairs.py with the same --out scores its samples again"
        )
    if encoder is not None and (rewritten := rewritten_turns(encoder.rewritten)):
        found.problems.append(f"{path}: {rewritten} (data.template_mismatch)")
    found.shares = {name: round(sum(values) / len(values), 4) for name, values in shares.items()}
    found.samples = [triplet for _, triplet in sorted(kept, key=lambda item: item[0])]
    return found


def find_sample(path: Path, identity: str) -> tuple[Triplet, Needs]:
    """Return the sample of an id, and all sequences that its file has.

    Raises:
        UserError: There is no such sample, or it is not good.
    """
    kind = _kind(path)
    for number, row in enumerate(with_progress(read_rows(path), "reading")):
        triplet, problems = _check(row, kind, f"row-{number}", set())
        if triplet is not None and triplet.id == identity:
            if problems:
                raise UserError(problems[0])
            return triplet, Needs(_WANTED[kind])
    raise UserError(f"{path}: no good row has the id {identity!r}: give one of its ids, or row-0 for the first row")


def _kind(path: Path) -> str:
    seen = {name for row in read_rows(path) for name in COLUMNS if has(row.value or {}, name)}
    if seen & {"prompt_short", "prompt_long"}:
        return "triplets"
    return "preferences" if "rejected" in seen else "fine-tuning"


def _check(row: Row, kind: str, default_id: str, seen: set[str]) -> tuple[Triplet | None, list[str]]:
    """Return the sample and its problems."""
    problems: dict[str, None] = {}
    triplet = None
    try:
        fields = row.fields()
        try:
            triplet = parse_triplet(fields, Needs(_WANTED[kind]), row.where, default_id)
        except UserError as whole:
            for name in _WANTED[kind]:
                try:
                    parse_triplet(fields, Needs((name,)), row.where, default_id)
                except UserError as error:
                    problems[str(error)] = None
            problems = problems or {str(whole): None}
        if has(fields, "answers"):
            text_list(fields["answers"], "answers", row.where)
        if triplet is not None:
            note_id(triplet.id, seen, row.where)
    except UserError as error:
        problems[str(error)] = None
    return triplet, list(problems)


def _lengths(triplet: Triplet, kind: str, ids: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    """Yield the fields of a row and their lengths. Token counts are those of training, end tokens included."""
    needs = Needs(_WANTED[kind])
    values = [(name, name, getattr(triplet, name)) for name in needs.prompts]
    values += [(name, column, answer) for name in needs.responses for column, _, answer in triplet.answers(name)]
    for name, column, value in values:
        texts = [value] if isinstance(value, str) else [message.get("content") or "" for message in value]
        label = "prompt" if name == "prompt_long" and triplet.prompt_short is None else name
        yield label, len(ids[column]) if ids else sum(map(len, texts))


def _properties(triplet: Triplet, answers: list[str] | None) -> Iterator[tuple[str, bool]]:
    """Yield the properties that apply to a row, and whether it has them."""
    chosen = answer_text(triplet.chosen or "")
    stated = stated_answer(chosen)
    yield "chosen without closing line", not stated.prefixed
    if answers:
        yield "chosen right by sub-EM", is_right(stated, answers)
    if triplet.prompt_short is not None:
        yield "short prompt is the long one", triplet.prompt_short == triplet.prompt_long
    if triplet.rejected is None:
        return
    rejected = answer_text(triplet.rejected)
    yield "chosen equals rejected", triplet.same_answers({})
    yield "chosen longer than rejected", len(chosen) > len(rejected)
    wrong = stated_answer(rejected)
    yield "rejected without closing line", not wrong.prefixed
    if answers:
        yield "rejected right by sub-EM", is_right(wrong, answers)
        yield "rejected mentions the answer", holds(searchable(rejected), map(searchable, answers))
