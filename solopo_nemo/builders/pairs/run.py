"""A sampling run: validate the questions, sample answers, select pairs, write the datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from solopo_nemo.builders.contexts.question import refuse_bad_rows
from solopo_nemo.builders.pairs.backend import Backend, Sampling, kind_of
from solopo_nemo.builders.pairs.datasets import (
    TABLE_2,
    choose_questions,
    dataset_path,
    reduced,
    triplet,
)
from solopo_nemo.builders.pairs.meter import Meter
from solopo_nemo.builders.pairs.sampler import REFUSED, Sampler, yields_pair
from solopo_nemo.builders.pairs.source import SIDES, Source
from solopo_nemo.builders.pairs.store import Entry, SampleStore, sampled_setting, samples_file
from solopo_nemo.data.template_date import pinned_date
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.runtime.errors import UserError, require, require_at_least
from solopo_nemo.runtime.output import atomic_text, beside, keep_source, write_json_line

_NEW_SAMPLES = " with another --out (the samples of one file have the same settings)"


@dataclass(frozen=True)
class PairSettings:
    """Settings of a sampling run.

    Attributes:
        contexts: File with the rows `id`, `prompt_short`, `prompt_long`, `answers`.
        out: Output file of the triplets, JSON lines.
        on: The prompt to sample on: `short`, `long` or `both`.
        size: Number of pairs to reach.
        skip_bad: Write bad rows to `<out>.rejects.jsonl` and continue.
        literal: Score by the literal form of sub-EM; see :func:`~solopo_nemo.data.answers.is_right`.
    """

    contexts: Path
    out: Path
    on: str = "short"
    size: int = 5000
    skip_bad: bool = False
    literal: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, size=self.size)
        require(self.out.suffix == ".jsonl", f"--out {self.out}: name it .jsonl, recipes take it by that")
        for out in (self.out, *(dataset_path(self.out, name) for name in TABLE_2 if self.on == "both")):
            keep_source(self.contexts, out)

    @property
    def sides(self) -> tuple[str, ...]:
        """The prompts to sample on."""
        return SIDES if self.on == "both" else (self.on,)


def sample_pairs(
    settings: PairSettings, sampling: Sampling, make_backend: Callable[[Sampling], Backend]
) -> dict[str, Any]:
    """Sample answers and write preference pairs. A second call resumes an interrupted run.

    Args:
        settings: Input, output and size.
        sampling: Sampling settings.
        make_backend: Creates the backend; called after the questions have been validated.

    Returns:
        The summary. For every side, `in` = `out` + `rejected` + `dropped`. Top-level counts are those of
        `settings.out`.

    Raises:
        UserError: A row is bad and `skip_bad` is off, the stored samples have other settings, the backend fails, or no
            question yields a pair.
    """
    with closing(Source(settings.contexts, settings.out.parent)) as source:
        if not len(source):
            raise UserError(f"{source.bad[0].error}, and no row is good: give the output of build_contexts")
        refuse_bad_rows([bad.error for bad in source.bad], settings.skip_bad)
        with opened(settings.out, sampling, make_backend, literal=settings.literal) as (backend, store):
            sampler = Sampler(len(source), source.__getitem__, store, backend, settings.sides, settings.size)
            with Meter(len(source), settings.size, cost=backend.cost) as meter:
                settled = sampler.run(meter)
            counts, shared = _write(settings, store.sampling, source, store, sampler, settled)
            reasons = store.reasons()
    sampled = [entry for known in sampler.entries.values() for entry in known.values() if entry is not None]
    main = settings.sides[0]
    return {
        **counts[main],
        "sides": counts,
        **({"on_both": shared} if settings.on == "both" else {}),
        "prompts": {"sampled": sampler.asked, "reused": sampler.reused},
        "samples": _sample_counts(sampled),
        "not_whole": reasons,
        "refused": dict(Counter(kind_of(reason) for reason in sampler.refusals.values())),
        "cut_prompts": backend.cut_prompts,
        "cost": backend.cost.counts,
        "answer_rule": store.rule,
        "acceptance": round(meter.acceptance, 4),
        "samples_per_second": round(meter.samples / meter.seconds, 2),
        "seconds": round(meter.seconds, 1),
    }


@contextmanager
def opened(
    out: Path, sampling: Sampling, make_backend: Callable[[Sampling], Backend], *, literal: bool = False
) -> Iterator[tuple[Backend, SampleStore]]:
    """Open the backend, and the samples beside an output, and close both.

    Args:
        out: The output.
        sampling: Sampling settings. Those of the store also have the template's date and the server's fingerprint.
        make_backend: Creates the backend.
        literal: See `SampleStore`.

    Raises:
        UserError: The stored samples have other settings, or the backend cannot be made.
    """
    file = samples_file(out)
    if sampling.backend == "hf":
        day = sampled_setting(file, "date")
        sampling = replace(sampling, date=pinned_date(load_tokenizer(sampling.model, day=day)))
    with closing(make_backend(sampling)) as backend:
        sampling = replace(sampling, server=backend.fingerprint(sampled_setting(file, "server")))
        with SampleStore(file, sampling, literal=literal) as store:
            yield backend, store


def _write(
    settings: PairSettings,
    sampling: Sampling,
    source: Source,
    store: SampleStore,
    sampler: Sampler,
    settled: list[int],
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write all files. Return the counts of each side, and the number of questions selected on all sides."""
    entries = sampler.entries
    chosen = choose_questions(settled, entries, settings.sides, settings.size)
    main = settings.sides[0]
    names = TABLE_2 if settings.on == "both" else {}
    rules: dict[str, Counter[str]] = {side: Counter() for side in settings.sides}
    candidates = set(settled)
    with ExitStack() as files:
        # the files are closed in reverse order, so the main output appears last
        out = files.enter_context(atomic_text(settings.out))
        others = {name: files.enter_context(atomic_text(dataset_path(settings.out, name))) for name in names}
        rejects, dropped = (
            files.enter_context(atomic_text(beside(settings.out, what), keep_empty=False))
            for what in ("rejects", "dropped")
        )
        for bad in source.bad:
            write_json_line(rejects, {"error": bad.error, "row": bad.value}, ascii_only=True)
        for number, id_ in enumerate(source.ids()):
            for side in settings.sides:
                if number not in chosen[side]:
                    rule = _rule(entries[number][side]) if number in candidates else "not_needed"
                    rules[side][rule] += 1
                    refusal = sampler.refusals.get((number, side))
                    why = {"reason": refusal} if rule == REFUSED and refusal else {}
                    write_json_line(dropped, {"id": id_, "side": side, "rule": rule} | why)
                    continue
                entry = entries[number][side]
                assert entry is not None
                row = triplet(source[number], side, store, entry, sampling.seed)
                if side == main:
                    write_json_line(out, row)
                for name in (name for name, of in names.items() if of == side):
                    write_json_line(others[name], reduced(row, name))
        if not chosen[main]:
            reasons = ", ".join(f"{count} {rule}" for rule, count in sorted(rules[main].items()))
            raise UserError(
                f"{settings.contexts}: no question yields a pair on its {main} prompt ({reasons}): "
                + _advice(rules[main], store.reasons(), [*sampler.refusals.values()])
            )
    total = len(source) + len(source.bad)
    return {
        side: {
            "in": total,
            "out": len(chosen[side]),
            "rejected": len(source.bad),
            "dropped": sum(rules[side].values()),
            "dropped_by_rule": dict(sorted(rules[side].items())),
        }
        for side in settings.sides
    }, len(set.intersection(*chosen.values()))


def _advice(rules: Counter[str], reasons: dict[str, int], refusals: list[str]) -> str:
    """Return what mends a run without pairs."""
    (rule, _), *_ = (Counter({name: n for name, n in rules.items() if name != "not_needed"}) or rules).most_common()
    if rule == REFUSED:
        return f"the prompts are refused: {refusals[0]}"
    if rule == "none_finished":
        why = max(reasons, key=lambda name: reasons[name])
        said = ", ".join(f"{count} {name}" for name, count in reasons.items())
        return f"no answer is whole ({said}): " + (
            f"give a higher --max-new-tokens{_NEW_SAMPLES}"
            if why == "length"
            else "look at the server's log and its model's limits"
        )
    return f"take questions of another difficulty, or more --samples or a higher --temperature{_NEW_SAMPLES}"


def _rule(entry: Entry | None) -> str:
    if yields_pair(entry):
        return "beyond_size"
    return REFUSED if entry is None else entry.verdict


def _sample_counts(entries: Iterable[Entry]) -> dict[str, int]:
    counts = Counter({"all": 0, "right": 0, "wrong": 0, "cut_or_empty": 0, "without_closing_line": 0})
    for entry in entries:
        counts["all"] += entry.finished + entry.cut
        counts["right"] += entry.right
        counts["wrong"] += entry.finished - entry.right
        counts["cut_or_empty"] += entry.cut
        counts["without_closing_line"] += entry.unprefixed
    return dict(counts)
