"""Sample answers to short or long prompts, score them by sub-EM, and select a right and a wrong one for each question.

Samples and scores are stored in FILE.samples.sqlite. To resume an interrupted run, start the same command again; stored
samples are reused. The answer is the text after the last "The answer is:", or the last line of a response without that
prefix. An answer is right if it contains a gold answer as whole words. Questions without right or without wrong
answers are dropped. Answers that reach the token limit are not selected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.cli import (
    EXIT_RESUMABLE,
    STOPPED,
    ArgumentParser,
    add_literal,
    add_server,
    add_template_kwargs,
    path_or_name,
    settings_of,
    show_json,
)
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.units import token_count

if TYPE_CHECKING:
    from solopo_nemo.builders.pairs.backend import Backend, Sampling


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = _parser().parse_args(arguments)
    from solopo_nemo.builders.pairs.backend import Sampling
    from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs

    def make_backend(sampling: Sampling) -> Backend:
        if given.backend == "hf":
            from solopo_nemo.builders.pairs.hf import HuggingFaceBackend

            return HuggingFaceBackend(sampling, given.device)
        from solopo_nemo.builders.pairs.client import ServerClient
        from solopo_nemo.builders.pairs.server import ServerBackend
        from solopo_nemo.builders.pairs.serving import serving

        log = given.out.with_name(f"{given.out.name}.server.log")
        server = stack.enter_context(serving(given.serve, given.model, given.base_url, given.patience, log))
        options = {"concurrency": given.concurrency, "patience": given.patience}
        return ServerBackend(sampling, ServerClient(sampling.model, server.url or "", alive=server.alive, **options))

    sampling, settings = settings_of(given, Sampling), settings_of(given, PairSettings)
    require(
        bool(given.backend == "hf" or given.base_url or given.serve),
        "--base-url: needed with --backend openai, such as http://127.0.0.1:8000/v1 (or --serve)",
    )
    require(given.backend == "openai" or not given.serve, "--serve: starts a server; give --backend openai")
    require(given.concurrency >= 1, f"--concurrency {given.concurrency}: must be at least 1")
    try:
        with ExitStack() as stack:
            summary = sample_pairs(settings, sampling, make_backend)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        # sys.exit would wait for the threads, which wait for their answers
        os._exit(EXIT_RESUMABLE)
    _report(summary)
    show_json(given, summary)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    option = parser.options("needed")
    contexts = "rows of id, prompt_short, prompt_long, answers, as build_contexts writes them"
    option("--contexts FILE", contexts, type=Path, required=True)
    backend = "hf: generate here with transformers; openai: ask an OpenAI-compatible server (vLLM, NIM, SGLang, ...)"
    option("--backend", backend, choices=["hf", "openai"], required=True)
    model = "local Hugging Face folder, or the name that the server gives the model"
    option("--model MODEL", model, type=path_or_name, required=True)
    out = "triplets to write (.jsonl); FILE.dropped.jsonl lists questions that a rule left out"
    option("--out FILE", out, type=Path, required=True)

    option = parser.options("pairs")
    on = (
        "prompt to sample on; both prefers questions that yield pairs on both, and also writes NAME.sft_short.jsonl, "
        "NAME.sft_long.jsonl, NAME.po_short.jsonl and NAME.po_long.jsonl"
    )
    option("--on", on, "short", choices=["short", "long", "both"])
    option("--size N", "stop when there are N pairs", 5000)
    skip = "go on after bad rows and write them to FILE.rejects.jsonl; without it the run stops before it samples"
    option("--skip-bad", skip)
    add_literal(option)

    option = parser.options("sampling")
    option("--samples N", "answers a prompt", 32)
    option("--temperature T", "of the softmax", 0.85)
    option("--top-p P", "nucleus sampling; 1 is none", 1.0)
    option("--top-k N", "draw from the N most probable tokens (default: all; with a server its own default)", type=int)
    option("--max-new-tokens N", "longest answer in tokens", 512, type=token_count)
    batch = (
        "answers to a prompt that are asked for at once, 0 for all of them: fewer where they do not fit on the "
        "device, or where the server gives no more in a request; another batch gives other samples"
    )
    option("--batch N", batch, 0)
    option("--seed N", "seed of all draws", 0)
    add_template_kwargs(option)
    parser.options("with --backend hf")("--device DEVICE", "torch device (default: the GPU where there is one)")
    option = parser.options(
        "with --backend openai; the key is taken from OPENAI_API_KEY",
        "what is not given here is the server's default, such as --top-k and repetition_penalty, which vLLM takes from "
        "the model's generation_config.json unless it is started with --generation-config vllm",
    )
    option("--base-url URL", "such as http://127.0.0.1:8000/v1")
    option("--concurrency N", "prompts at once", 16)
    add_server(option)
    parser.add_json()
    parser.set_defaults(date=None, server=None)
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
    for reason, count in summary["not_whole"].items():
        console.print(f"{count} samples are not whole: {reason}", markup=False)
    for reason, count in summary["refused"].items():
        console.print(f"{count} prompts refused: {reason}", markup=False)
    if summary["cut_prompts"]:
        console.print(f"{summary['cut_prompts']} prompts were cut by the server: start it with a longer window")
