"""Build RULER-style short and long contexts from questions: all evidence, and random unrelated paragraphs.

Both prompts of a question contain every supporting paragraph. Distractors are added until the prompt, chat template
and question included, is within one paragraph of its token target and not above it. The long context contains the
short one. With --long document the contexts are the document of the evidence in its natural order. The output depends
on the seed and not on the number of workers. To resume an interrupted run, start the same command again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.builders.contexts.sources import FORMATS
from solopo_nemo.commands.asking import encoder_of
from solopo_nemo.runtime.cli import ArgumentParser, add_template_kwargs, path_or_name, show_json

if TYPE_CHECKING:
    from solopo_nemo.builders.contexts.settings import BuildSettings


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    from solopo_nemo.builders.contexts.build import build_contexts
    from solopo_nemo.builders.contexts.shards import planned_date

    settings = checked(parsed)
    summary = build_contexts(settings, encoder_of(parsed, planned_date(settings.work)))
    _report(summary)
    show_json(parsed, summary)


def checked(parsed: Any) -> BuildSettings:
    """Return the settings, or refuse an option. No question is read."""
    from solopo_nemo.builders.contexts.settings import BuildSettings

    others = ("tokenizer", "json", "pairs", "chat_template_kwargs")
    given = {name: value for name, value in vars(parsed).items() if name not in others}
    return BuildSettings(**{**given, "pool": tuple(parsed.pool or ())}, gold_pairs=parsed.pairs == "gold")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    option = parser.options("needed")
    source = (
        "questions in the format of MuSiQue, HotpotQA, 2WikiMultihopQA or SQuAD, or rows of question, answers, "
        "supporting[] and distractors[]: .jsonl, .json (both also .gz), .parquet, a saved dataset's folder, or a name "
        "that `datasets` loads, such as a dataset on the Hugging Face hub"
    )
    option("--source PATH|NAME", source, type=path_or_name, required=True)
    tokenizer = "Hugging Face folder of the model to train, or its name on the hub; it needs a chat template"
    option("--tokenizer FOLDER", tokenizer, type=path_or_name, required=True)
    short = (
        "token target of the short prompt: 1100 or 1K, a range 800-1400, or a file with one length a line to draw from"
    )
    option("--short-tokens N", short, type=path_or_name, required=True)
    long = (
        "token target of the long prompt, such as 7500; several, as in 4096,8192,16384, give one output each, "
        "NAME.4096.jsonl, with the same questions: a question that fails at one length is in none"
    )
    option("--long-tokens N[,N]", long, type=path_or_name, required=True)
    out = "JSON lines to write; FILE.report.json has the figures, FILE.dropped.jsonl the questions that a rule left out"
    option("--out FILE", out, type=Path, required=True)

    option = parser.options("choices")
    option("--format", "schema of the source (default: recognised by its first row)", choices=FORMATS, dest="schema")
    option("--subset NAME", "subset (configuration) of a dataset that has several")
    option("--split NAME", "split of a dataset that has several")
    pool = (
        "draw distractors from these files or datasets instead of the other questions: rows of title and "
        "paragraph_text, rows of text, or questions in a format of --source"
    )
    option("--pool PATH", pool, type=path_or_name, nargs="+")
    long = (
        "document: the document of the evidence in its natural order, whole or a window, with other documents around "
        "it if it is too short; needs --pool with the passages of build_questions"
    )
    option("--long KIND", long, "shuffled", choices=["shuffled", "document"])
    pairs = "gold: also write chosen (gold answer) and rejected (wrong answer of the same kind), without sampling"
    option("--pairs", pairs, "none", choices=["none", "gold"])
    add_template_kwargs(option)
    option("--seed N", "seed of all draws", 0)
    option("--limit N", "use the first N rows only; the others still serve as distractors", type=int)
    option("--allow-answer-leak", "allow distractors that contain the answer or an alias")
    skip = "continue after bad rows and write them to FILE.rejects.jsonl; without it a bad row stops the command"
    option("--skip-bad", skip)
    option("--workers N", "number of processes; the result does not depend on it", 1)
    option("--report FOLDER", "also plot the lengths and the positions of the evidence, as PNG", type=Path)
    parser.add_json()
    return parser


def _report(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    console.print("in {in} = out {out} + rejected {rejected} + dropped {dropped}".format_map(summary))
    for rule, count in summary["dropped_by_rule"].items():
        console.print(f"dropped: {count} by rule {rule}")
    table = Table("target", "short tokens", "long tokens", "rho", "evidence at")
    for label, length in summary["lengths"].items():
        means = (f"{summary['short_tokens']['mean']:.0f}", f"{length['tokens']['mean']:.0f}", f"{length['rho']:.3f}")
        table.add_row(label, *means, f"{length['evidence_position']['mean']:.2f}")
    console.print(table)
