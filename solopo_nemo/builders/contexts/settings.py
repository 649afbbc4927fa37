"""Settings of a build of contexts, and the fingerprint of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import solopo_nemo
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.contexts.targets import Targets
from solopo_nemo.data.tokenizer_files import tokenizer_state
from solopo_nemo.runtime.errors import UserError


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        source: Questions, in one of the schemas of `sources`: a path, or a dataset's name on the Hugging Face hub.
        out: The file to write, JSON lines; with several long targets each has its own beside, `out_files`.
        short_tokens: Largest number of tokens of the short prompt: a number, a range or a file, see `targets`.
        long_tokens: The same for the long prompt, or several with commas between.
        pool: Sources of distractor paragraphs; without one they are those of the other questions.
        subset: The source's subset, where it is a dataset with several.
        split: The source's split, where it is a dataset with several.
        schema: The source's schema; None recognises it.
        seed: Seed of all draws.
        limit: Use this many rows of the source; the rest still serves as pool.
        gold_pairs: Write whole triplets, with gold answers against wrong ones.
        allow_answer_leak: Allow distractors that hold the answer.
        skip_bad: Go on after bad rows, and write them to `<out>.rejects.jsonl`.
        workers: Number of processes; no output depends on it.
        report: Folder for the plots; None draws none.
        shard_rows: Rows of the source in a shard; a killed run loses at most one shard per worker.
    """

    source: Path | str
    out: Path
    short_tokens: int | str
    long_tokens: int | str
    pool: tuple[Path | str, ...] = ()
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
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: must be at least 1")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if self.out.suffix != ".jsonl":
            raise UserError(f"--out {self.out}: must end in .jsonl")

    @cached_property
    def targets(self) -> Targets:
        """The token targets."""
        return Targets.parse(self.short_tokens, self.long_tokens)

    @property
    def out_files(self) -> dict[str, Path]:
        """The file of each long target, by its label: `out` itself where there is only one."""
        labels = [target.label for target in self.targets.long]
        if len(labels) == 1:
            return {labels[0]: self.out}
        return {label: self.out.with_name(f"{self.out.stem}.{label}.jsonl") for label in labels}

    def plan(self, source: RowSource, pool: list[RowSource], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Return all that the result depends on, files by their contents."""
        return {
            "version": solopo_nemo.__version__,
            "source": f"{source.name} {source.digest()}",
            "pool": " ".join(part.digest() for part in pool),
            "tokenizer": hashlib.sha256(json.dumps(tokenizer_state(tokenizer), sort_keys=True).encode()).hexdigest(),
            "targets": repr(self.targets),
            "choices": repr(
                (self.schema, self.seed, self.limit, self.gold_pairs, self.allow_answer_leak, self.shard_rows)
            ),
        }
