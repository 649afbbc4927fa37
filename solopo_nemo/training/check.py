"""``solopo check``: lists everything that a run would refuse or warn of, without running it.

1. Load the configuration. Refused overrides are left out, so that the others can be checked.
2. Make every check of :data:`solopo_nemo.training.checks.CHECKS`, also after a failed one. Checks that need the same
   unreadable part (such as the tokenizer) find the same problem, which is listed once.
3. If there is no problem, predict the memory of the longest sample.

The output folder does not change. Files are written to a temporary folder, which is removed at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solopo_nemo.config.problems import load_reporting
from solopo_nemo.config.schema import RunConfig
from solopo_nemo.config.world import own_world
from solopo_nemo.data.triplets import read_triplets
from solopo_nemo.planning import GPU, Machine, Run, is_known, memory
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.credentials import masked_command
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.training.checkpoints.files import step_of
from solopo_nemo.training.checks import CHECKS, EVERYWHERE
from solopo_nemo.training.failures.memory_advice import longest_lengths, own_machine, shortage
from solopo_nemo.training.output_lock import OutputLock
from solopo_nemo.training.start import Start


@dataclass
class Findings:
    """The result of a check.

    Attributes:
        problems: what the run would refuse, and predicted lack of memory; one line each.
        warnings: what the run would warn of; one line each.
        run: description of a run without problems: samples, longest lengths in tokens, steps, layout, memory in GiB.
        summary: the last line.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    run: dict[str, Any] | None = None
    summary: str = ""

    @contextmanager
    def listing(self) -> Iterator[None]:
        """Adds a UserError of the block to the problems, unless it is listed, and suppresses it."""
        try:
            yield
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def show(self) -> int:
        """Prints warnings, problems and summary, and returns the exit code: 0, or 2 if there are problems."""
        for kind, lines in (("warning", self.warnings), ("error", self.problems)):
            for line in lines:
                print(f"{kind}: {' '.join(line.split())}")
        print(self.summary)
        return cli.EXIT_USER_ERROR if self.problems else 0


def check_recipe(
    recipe: str, overrides: Sequence[str], gpus: int | None = None, gpu_memory: float | None = None
) -> Findings:
    """Checks a recipe for this machine, or for a number of GPUs.

    Args:
        recipe: name of the recipe.
        overrides: the words of the command line.
        gpus: number of GPUs of the run; by default the number of ranks that this machine would start.
        gpu_memory: memory of each GPU in GiB. Without ``gpus`` and ``gpu_memory`` the run is checked for the devices of
            this machine.
    """
    with _noting() as warnings, tempfile.TemporaryDirectory(prefix="solopo-check-") as scratch:
        config, problems = load_reporting(recipe, overrides)
        found = Findings(problems)
        if config is None:
            warnings.append("model, data and layout are not checked before this is mended")
        else:
            with found.listing():
                check_config(dataclasses.replace(config, check_only=False), Path(scratch), found, gpus, gpu_memory)
        found.warnings += warnings
    found.problems, found.warnings = ([*map(masked_command, lines)] for lines in (found.problems, found.warnings))
    if count := len(found.problems):
        found.summary = f"not ready: {count} problem{'s' * (count > 1)}"
    return found


def check_config(
    config: RunConfig, scratch: Path, found: Findings, gpus: int | None = None, gpu_memory: float | None = None
) -> None:
    """Checks a run; see :func:`check_recipe`.

    Args:
        config: configuration of the run.
        scratch: empty folder for temporary files.
        found: receives the problems, or the description of a run without problems.
        gpus, gpu_memory: see :func:`check_recipe`.
    """
    world = gpus or own_world(config)
    if gpus or gpu_memory:
        usual = Machine()
        where, machine = GPU, Machine(world, min(world, usual.gpus_per_node), gpu_memory or usual.memory_gib)
    else:
        where, machine = own_machine(world)
    start = Start(config, world, where == GPU, scratch)
    for check in (lambda _: OutputLock(config.output).refuse_if_owned(), *EVERYWHERE, *CHECKS, _check_rows):
        with found.listing():
            check(start)
    found.problems = [line.replace(str(scratch), str(config.output)) for line in found.problems]
    if not found.problems:
        _predict(start, where, machine, found)


def _check_rows(start: Start) -> None:
    """Reads the rows if they could not be tokenized, to find the problems that need no model."""
    if {"source", "model", "tokenizer"} & start.refused.keys():
        for _ in read_triplets(start.train, start.needs):
            pass


def _predict(start: Start, where: str, machine: Machine, found: Findings) -> None:
    """Describes a run without problems, and compares its predicted memory with that of the machine."""
    summary, lengths = start.prepared.summary, longest_lengths(start.prepared.summary)
    run = Run.of(start.config, start.model, lengths, start.world, where)
    gib, device = memory(run).gib if is_known(run) else None, "GPU" if where == GPU else "CPU rank"
    of_memory = "no prediction of memory for" if gib is None else f"about {gib:.1f} of {machine.memory_gib:.1f} GiB"
    longest = {column: int(statistics["max"]) for column, statistics in summary["tokens"].items()}
    found.run = {
        "samples": summary["kept"],
        "dropped": summary["dropped"],
        "longest": longest,
        "steps": start.steps,
        "resumed_after": step_of(start.saved[-1]) if start.saved else 0,
        "layout": dataclasses.asdict(run.layout),
        "memory_gib": gib and round(gib, 2),
    }
    if short := shortage(start.config, start.model, summary, where, machine):
        other = "" if where == GPU else "; --gpus and --gpu-memory check for other devices than this machine's"
        found.problems.append(f"{short}{other}")
    resumed = f", goes on after step {found.run['resumed_after']}" if start.saved else ""
    found.summary = (
        f"ready: {summary['kept']:,} samples ({summary['dropped']:,} dropped), "
        f"longest {', '.join(f'{column} {size:,}' for column, size in longest.items())} tokens; "
        f"{start.steps:,} steps of {start.config.trainer.global_batch}{resumed}; {run.layout} on {start.world} {device}"
        f"{'s' * (start.world > 1)}; {of_memory} a {device}"
    )


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Collects this project's warnings in the block, each once, and prints none."""
    lines: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and (text := record.getMessage()) not in lines:
                lines.append(text)

    own = logging.getLogger("solopo_nemo")
    before = own.handlers, own.propagate
    own.handlers, own.propagate = [Note()], False
    try:
        yield lines
    finally:
        own.handlers, own.propagate = before
