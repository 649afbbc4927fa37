"""Sample answers to short or long prompts, score them by sub-EM, and select a right and a wrong one for each question.

Samples and scores are stored in FILE.samples.sqlite. To resume an interrupted run, start the same command again; stored
samples are reused. The answer is the text after the last "The answer is:", or the last line of a response without that
prefix. An answer is right if it contains a gold answer as whole words. Questions without right or without wrong
answers are dropped. Answers that reach the token limit are not selected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.commands.asking import add_backend, add_sampling, backend_maker, resumable, show_asked
from solopo_nemo.runtime.cli import ArgumentParser, add_literal, settings_of, show_json
from solopo_nemo.runtime.errors import require

if TYPE_CHECKING:
    from solopo_nemo.builders.pairs.backend import Backend, Sampling
    from solopo_nemo.builders.pairs.run import PairSettings


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_args(arguments)
    from solopo_nemo.builders.pairs.run import sample_pairs

    with resumable() as stack:
        summary = sample_pairs(*checked(given, stack))
    _report(summary)
    show_json(given, summary)


def checked(given: Any, stack: ExitStack) -> tuple[PairSettings, Sampling, Callable[[Sampling], Backend]]:
    """Return what `sample_pairs` takes, or refuse an option. Nothing is read or started."""
    from solopo_nemo.builders.pairs.backend import Sampling
    from solopo_nemo.builders.pairs.run import PairSettings

    settings, sampling = settings_of(given, PairSettings), settings_of(given, Sampling)
    require(sampling.samples >= 2, f"--samples {sampling.samples}: a pair needs at least 2 answers a prompt")
    return settings, sampling, backend_maker(given, stack)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    option = parser.options("needed")
    contexts = "output of build_contexts: rows of id, prompt_short, prompt_long, answers"
    option("--contexts FILE", contexts, type=Path, required=True)
    add_backend(option)
    out = "triplets to write (.jsonl); FILE.dropped.jsonl lists questions that a rule left out"
    option("--out FILE", out, type=Path, required=True)

    option = parser.options("pairs")
    on = (
        "prompt to sample on; both prefers questions that yield pairs on both, and also writes NAME.sft_short.jsonl, "
        "NAME.sft_long.jsonl, NAME.po_short.jsonl and NAME.po_long.jsonl"
    )
    option("--on", on, "short", choices=["short", "long", "both"])
    option("--size N", "stop when there are N pairs", 5000)
    skip = "continue after bad rows and write them to FILE.rejects.jsonl; without it a bad row stops the command"
    option("--skip-bad", skip)
    add_literal(option)

    add_sampling(parser, samples=32, temperature=0.85, max_new_tokens=512)
    return parser


def _report(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("prompt", "in", "=", "out", "+", "rejected", "+", "dropped")
    for side, counts in summary["sides"].items():
        numbers = (str(counts[name]) for name in ("in", "out", "rejected", "dropped"))
        table.add_row(side, *[cell for number in numbers for cell in (number, "")][:-1])
    console = Console(stderr=True)
    console.print(table)
    for side, counts in summary["sides"].items():
        for rule, count in counts["dropped_by_rule"].items():
            console.print(f"{side}: {count} dropped by rule {rule}")
    samples = summary["samples"]
    console.print(
        f"{samples['all']} samples, {samples['right']} right, {samples['cut_or_empty']} cut or empty; "
        f"{samples['without_closing_line']} without a closing line, scored by their last line"
    )
    show_asked(console, summary)
