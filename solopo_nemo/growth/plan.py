"""The rounds of a growth, as commands of the other tools."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from solopo_nemo.evaluation.suites.builtin import LONGEST
from solopo_nemo.runtime.credentials import masked_command
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.runtime.units import short_count

BUILTIN = "builtin"
COMMANDS = "commands.json"
"""File in the folder of a round: the command of each phase that was started, without credentials, and `CONTENT`."""
CONTENT = "source content"
_FREE = ("--concurrency", "--patience", "--serve", "--base-url", "--workers", "--device", "--json")
_SET_KEYS = ("output_dir=", "data.train=", "model.init=", "dry_run=")
_FREE_KEYS = ("parallel.", "logger.", "hub.", "trainer.checkpoint_every=", "trainer.keep_checkpoints=")


@dataclass(frozen=True)
class GrowthSettings:
    """Settings of a growth.

    Attributes:
        recipe: name of the recipe.
        overrides: its configuration keys.
        model: Hugging Face folder of the starting model.
        source: questions as `build_contexts` takes them, or `builtin`.
        lengths: length of the long prompt in each round, in tokens; of the built-in questions as a multiple of the
            short length.
        short: length of the short-context guard in the evaluation, in the same unit.
        short_tokens: token target of the short prompt; empty for the built-in questions.
        suite: suite of the evaluation.
        contexts: further options of `build_contexts`.
        sampling: further options of `sample_pairs`.
        evaluation: further options of `evaluate`.
        reach: share of the short score that a model reaches at a length it can use.
        guard: points of the short score that a round may lose against the starting model.
        out: folder of the rounds and of the page.
        content: hash of the questions in the files of `source`; empty for the built-in questions.
    """

    recipe: str
    overrides: tuple[str, ...]
    model: str
    source: str
    lengths: tuple[int, ...]
    short: int
    short_tokens: str
    suite: str
    contexts: tuple[str, ...]
    sampling: tuple[str, ...]
    evaluation: tuple[str, ...]
    reach: float
    guard: float
    out: Path
    content: str = ""

    def __post_init__(self) -> None:
        given = f"--lengths {','.join(map(str, self.lengths))}"
        rising = all(a < b for a, b in pairwise((self.short, *self.lengths)))
        require(rising, f"{given}: must rise, from above the short length of {self.name(self.short)}")
        if self.builtin:
            require(2 * self.lengths[-1] <= LONGEST, f"{given}: the built-in questions go to {LONGEST // 2} times")
            unused = [name for name in ("contexts", "short_tokens") if getattr(self, name)]
            require(not unused, f"--{'-'.join(unused).replace('_', '-')}: is for --source FILE")
        require(0 < self.reach <= 1, f"--reach {self.reach:g}: must be above 0 and at most 1")
        require(self.guard >= 0, f"--guard {self.guard:g}: must not be negative")
        own = [word for word in self.overrides if word.startswith(_SET_KEYS)]
        require(not own, f"{' '.join(own)}: each round sets it; see --out, --source, --model and --dry-run")

    @property
    def builtin(self) -> bool:
        """Whether the questions are the built-in ones."""
        return self.source == BUILTIN

    def name(self, length: int) -> str:
        """A length in words: 8K, or 2x."""
        return f"{length}x" if self.builtin else short_count(length)

    def folder(self, number: int) -> Path:
        """The folder of a round; round 0 is the starting model."""
        return self.out / ("start" if number == 0 else f"round_{number}_{self.name(self.lengths[number - 1])}")

    def policy(self, number: int) -> str:
        """The model after a round."""
        return self.model if number == 0 else str(self.folder(number) / "train" / "hf")

    def evaluated(self, number: int) -> tuple[int, ...]:
        """The lengths at which the model after a round is evaluated: short, the round's length, and twice it."""
        length = self.lengths[max(number, 1) - 1]
        return tuple(sorted({self.short, length, 2 * length}))


@dataclass(frozen=True)
class Phase:
    """A step of a round: a command of another tool.

    Attributes:
        name: what it does.
        folder: folder of the round.
        words: arguments of Python.
        done: the file that the tool writes last.
        content: hash of what it reads that no phase has written; empty if there is no such input.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    done: Path
    content: str = ""

    @property
    def command(self) -> list[str]:
        """The command, for this Python."""
        return [sys.executable, *self.words]

    @property
    def shown(self) -> str:
        """The command without credentials, in one line for a shell."""
        return shlex.join(map(masked_command, self.command))

    def finished(self) -> bool:
        """Whether the tool has finished.

        Raises:
            UserError: it has, with other settings than the present ones, or from another input.
        """
        if not self.done.is_file():
            return False
        earlier = self._noted().get(self.name)
        now, before = _settings(self.words), _settings(earlier or self.words)
        if now != before:
            lost, new = ([word for word in one if word not in other] for one, other in ((before, now), (now, before)))
            raise UserError(
                f"{self.folder}: {self.name} finished with other settings ({' '.join(lost) or 'fewer'}; now "
                f"{' '.join(new) or 'fewer'}): give the same, or another --out"
            )
        require(
            self._noted().get(CONTENT, self.content) == self.content,
            f"{self.folder}: {self.name} finished with another content of --source: restore it, or give another --out",
        )
        return True

    def note(self) -> None:
        """Record the command, and the hash of its input, before it starts."""
        content = {CONTENT: self.content} if self.content else {}
        noted = self._noted() | {self.name: self.words}
        # version 0.2.0 wrote the commands of earlier phases with credentials
        shown = {key: value if key == CONTENT else [*map(masked_command, value)] for key, value in noted.items()}
        write_json(self.folder / COMMANDS, shown | content, indent=1)

    def _noted(self) -> dict[str, Any]:
        path = self.folder / COMMANDS
        return json_rows(path)[0] if path.is_file() else {}


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON values of a file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(text)] if path.suffix == ".json" else [*map(json.loads, text.splitlines())]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): bring the file back, or give another --out") from None


def _settings(words: Sequence[str]) -> list[str]:
    """The words that decide the result: without addresses, credentials, parallel sizes and the like."""
    kept, skip = [], False
    for word in words:
        option = word.partition("=")[0]
        if not skip and option not in _FREE and not word.startswith(_FREE_KEYS):
            kept.append(masked_command(word))
        skip = word in _FREE and word != "--json"
    return kept


def phases(settings: GrowthSettings, number: int) -> list[Phase]:
    """The phases of a round, in order; of round 0 the evaluation of the starting model."""
    folder = settings.folder(number)
    policy, before = settings.policy(number), settings.policy(max(number - 1, 0))

    def phase(name: str, done: str, *words: object, content: str = "") -> Phase:
        return Phase(name, folder, ("-m", "solopo_nemo", *map(str, words)), folder / done, content)

    lengths = ",".join(map(str, settings.evaluated(number)))
    asked = ("--suite", settings.suite, "--lengths", lengths, *settings.evaluation)
    evaluation = phase(
        "evaluation",
        "evaluation/report/index.html",
        *("evaluate", "--model", policy, "--out", folder / "evaluation", *asked),
    )
    if number == 0:
        return [evaluation]
    contexts, triplets, length = folder / "contexts.jsonl", folder / "triplets.jsonl", settings.lengths[number - 1]
    if settings.builtin:
        words = ("-m", "solopo_nemo.growth.builtin", str(contexts), str(number), str(length))
        built = Phase("contexts", folder, words, contexts)
    else:
        source = ("--source", settings.source, "--tokenizer", settings.model, "--seed", number)
        targets = ("--short-tokens", settings.short_tokens, "--long-tokens", length, "--out", contexts)
        options = (*source, *targets, *settings.contexts)
        built = phase("contexts", contexts.name, "build_contexts", *options, content=settings.content)
    sampled = ("--contexts", contexts, "--model", before, "--seed", number, "--out", triplets, *settings.sampling)
    trained = (f"data.train={triplets}", f"model.init={before}", f"output_dir={folder / 'train'}", *settings.overrides)
    return [
        built,
        phase("pairs", triplets.name, "sample_pairs", *sampled),
        phase("training", "train/report/index.html", settings.recipe, *trained),
        evaluation,
    ]
