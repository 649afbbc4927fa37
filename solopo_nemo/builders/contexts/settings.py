"""Settings of a context build, and the record of everything that determines its result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import solopo_nemo
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.contexts.targets import Targets
from solopo_nemo.data.normal_form import RULE
from solopo_nemo.data.template_date import pinned_date
from solopo_nemo.data.tokenizer_files import tokenizer_state
from solopo_nemo.runtime.errors import require, require_at_least
from solopo_nemo.runtime.json_files import json_hash
from solopo_nemo.runtime.output import keep_source

SHUFFLED, DOCUMENT = "shuffled", "document"
"""Values of `--long`: passages in random order, or the documents of the evidence in natural order."""


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a context build.

    Attributes:
        source: Questions in one of the schemas of `sources`: a path, or the name of a dataset on the Hugging Face hub.
        out: Output file, JSON lines. Several long targets have one file each; see `out_files`.
        short_tokens: Maximum tokens of the short prompt: a number, a range or a file; see `targets`.
        long_tokens: Maximum tokens of the long prompt, in the same form; several targets are separated by commas.
        pool: Sources of distractor paragraphs; empty uses the paragraphs of the other questions.
        long: How contexts are made: `SHUFFLED` or `DOCUMENT`.
        subset: Subset of the source dataset; None if it has only one.
        split: Split of the source dataset; None if it has only one.
        schema: Schema of the source; None detects it.
        seed: Seed of all draws.
        limit: Number of source rows to use; None uses all. The other rows still contribute to the pool.
        gold_pairs: Write complete triplets whose responses state the gold answer and an incorrect answer.
        allow_answer_leak: Allow distractors that contain the answer.
        skip_bad: Write bad rows to `<out>.rejects.jsonl` and continue.
        workers: Number of processes. The outputs do not depend on it.
        report: Folder for the plots; None writes none.
        shard_rows: Source rows per shard. An interrupted build loses at most one shard per worker.
    """

    source: Path | str
    out: Path
    short_tokens: int | str
    long_tokens: int | str
    pool: tuple[Path | str, ...] = ()
    long: str = SHUFFLED
    subset: str | None = None
    split: str | None = None
    schema: str | None = None
    seed: int = 0
    limit: int | None = None
    gold_pairs: bool = False
    allow_answer_leak: bool = False
    skip_bad: bool = False
    workers: int = 1
    report: Path | None = None
    shard_rows: int = 64

    def __post_init__(self) -> None:
        self.targets  # noqa: B018  checked by reading it
        require_at_least(1, limit=self.limit, workers=self.workers)
        require(
            self.long == SHUFFLED or bool(self.pool),
            "--long document: give --pool the passages of the documents, such as questions.jsonl.passages.jsonl",
        )
        require(self.out.suffix == ".jsonl", f"--out {self.out}: must end in .jsonl")
        for source in (self.source, *self.pool):
            for out in self.out_files.values():
                keep_source(source, out)
                keep_source(Path(source) / out.name, out)  # a folder of sources

    @cached_property
    def targets(self) -> Targets:
        """The token targets."""
        return Targets.parse(self.short_tokens, self.long_tokens)

    @property
    def out_files(self) -> dict[str, Path]:
        """Label of each long target -> its output file. A single target is written to `out`."""
        labels = [target.label for target in self.targets.long]
        if len(labels) == 1:
            return {labels[0]: self.out}
        return {label: self.out.with_name(f"{self.out.stem}.{label}.jsonl") for label in labels}

    @property
    def work(self) -> Path:
        """Folder of an unfinished build."""
        return self.out.with_name(self.out.name + ".work")

    def plan(self, source: RowSource, pool: list[RowSource], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Return everything that determines the result; files are identified by a hash of their content."""
        date = pinned_date(tokenizer)
        choices = (self.schema, self.seed, self.limit, self.gold_pairs, self.allow_answer_leak, self.shard_rows)
        return {
            **({"date": date} if date else {}),
            **({} if self.long == SHUFFLED else {"long": self.long}),
            "version": solopo_nemo.__version__,
            "answer_rule": str(RULE),
            "source": f"{source.name} {source.digest()}",
            "pool": " ".join(part.digest() for part in pool),
            "tokenizer": json_hash(tokenizer_state(tokenizer), sort_keys=True),
            "targets": repr(self.targets),
            "choices": repr(choices),
        }
