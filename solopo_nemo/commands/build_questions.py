"""Write questions about your own documents with an instruct model, and keep those that can be answered from them.

The documents are cut into passages. For one passage, or two to four that share a name, the model writes a question, a
short answer and quotes. A question is kept if its quotes and its answer occur in the passages, most sampled answers
from the evidence alone are right, no answer without passages is right, and it repeats no other question.

FILE has the rows that build_contexts takes, FILE.passages.jsonl all passages (its --pool), FILE.dropped.jsonl the other
questions, each with its rule, FILE.left_out.jsonl boilerplate and near-duplicates. To resume an interrupted run, start
the same command again. Answers are stored in FILE.samples.sqlite and not asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solopo_nemo.commands.asking import add_backend, add_sampling, backend_maker, encoder_of, resumable, show_asked
from solopo_nemo.runtime.cli import ArgumentParser, path_or_name, settings_of, show_json
from solopo_nemo.runtime.units import token_count


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_args(arguments)
    from solopo_nemo.builders.pairs.backend import Sampling
    from solopo_nemo.builders.questions.run import QuestionSettings, build_questions

    given.source = tuple(given.source)
    sampling, settings = settings_of(given, Sampling), settings_of(given, QuestionSettings)
    encoder = encoder_of(given)
    with resumable() as stack:
        summary = build_questions(settings, sampling, encoder, backend_maker(given, stack))
    _report(summary)
    show_json(given, summary)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    option = parser.options("needed")
    source = (
        "files or folders of .txt, .md, .html, .pdf, .docx; rows of text and an optional title (.jsonl, .parquet, a "
        "saved dataset's folder); or a name that `datasets` loads"
    )
    option("--source PATH|NAME", source, type=path_or_name, nargs="+", required=True)
    tokenizer = "Hugging Face folder of the model to train, or its name on the hub; it counts the tokens"
    option("--tokenizer FOLDER", tokenizer, type=path_or_name, required=True)
    add_backend(option)
    option("--out FILE", "questions to write (.jsonl); FILE.report.json has the figures", type=Path, required=True)

    option = parser.options("questions")
    option("--subset NAME", "subset (configuration) of a dataset that has several")
    option("--split NAME", "split of a dataset that has several")
    option("--passage-tokens N", "longest passage in tokens", 256, type=token_count)
    option("--limit N", "ask for N questions at most (default: one for each passage)", type=int)
    prompts = (
        "folder with your own write.txt, answer.txt or recall.txt in place of those in solopo_nemo/assets/questions"
    )
    option("--prompts FOLDER", prompts, type=Path)
    skip = "continue without documents that cannot be read, and list them in FILE.rejects.jsonl"
    option("--skip-bad", skip)
    add_sampling(parser, samples=5, temperature=0.7, max_new_tokens=1024)
    return parser


def _report(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(stderr=True, markup=False, soft_wrap=True)
    documents, passages = summary["documents"], summary["passages"]
    furniture = f"{documents['furniture']} menus, page headers and page footers left out"
    console.print(f"documents: {documents['read']} read, {documents['rejected']} rejected; {furniture}")
    if summary["other_files"]:
        others = ", ".join(f"{count} {suffix}" for suffix, count in summary["other_files"].items())
        console.print(f"files of other kinds, not read: {others}")
    console.print("passages: " + ", ".join(f"{count} {what}" for what, count in passages.items()))
    console.print("questions: in {in} = out {out} + dropped {dropped}".format_map(summary))
    for rule, count in summary["dropped_by_rule"].items():
        console.print(f"dropped: {count} by rule {rule}")
    show_asked(console, summary)
