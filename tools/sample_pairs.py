"""Sample answers to short or long prompts, score them by sub-EM, and choose one right and one wrong a question.

Samples and scores are kept in FILE.samples.jsonl: started again, the same command goes on where it was ended, and
what was sampled is never sampled again. An answer is what follows the last "The answer is:", or the last line without
one; it is right if it holds a gold answer. Questions without right or without wrong answers are dropped. Answers that
reach the token limit are never chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from solopo_nemo.builders.pairs.backend import Backend, Sampling
from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.runtime.cli import EXIT_RESUMABLE, STOPPED, ArgumentParser, run
from solopo_nemo.runtime.errors import UserError


def main() -> None:
    """Run the command."""
    arguments = _parser().parse_args()
    sampling = Sampling(
        backend=arguments.backend,
        model=arguments.model,
        samples=arguments.samples,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    settings = PairSettings(
        contexts=arguments.contexts,
        out=arguments.out,
        on=arguments.on,
        size=arguments.size,
        skip_bad=arguments.skip_bad,
    )

    def make_backend(sampling: Sampling) -> Backend:
        # loaded where needed: a server needs no torch here
        if arguments.backend == "hf":
            from solopo_nemo.builders.pairs.hf import HuggingFaceBackend

            return HuggingFaceBackend(sampling, arguments.device)
        from solopo_nemo.builders.pairs.server import ServerBackend

        return ServerBackend(
            sampling, arguments.base_url, concurrency=arguments.concurrency, patience=arguments.patience
        )

    if arguments.backend == "openai" and not arguments.base_url:
        raise UserError("--base-url: needed with --backend openai, such as http://127.0.0.1:8000/v1")
    if arguments.concurrency < 1:
        raise UserError(f"--concurrency {arguments.concurrency}: must be at least 1")
    try:
        summary = sample_pairs(settings, sampling, make_backend)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        # a plain exit would wait for the threads, and they for their answers
        os._exit(EXIT_RESUMABLE)
    _report(summary)
    if arguments.json:
        print(json.dumps(summary))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    needed = parser.add_argument_group("needed")
    contexts = "rows of id, prompt_short, prompt_long, answers, as tools/build_contexts.py writes them"
    needed.add_argument("--contexts", type=Path, required=True, metavar="FILE", help=contexts)
    backend = "hf: generate here with transformers; openai: ask an OpenAI-compatible server (vLLM, NIM, SGLang, ...)"
    needed.add_argument("--backend", choices=["hf", "openai"], required=True, help=backend)
    model = "local Hugging Face folder, or the name that the server gives the model"
    needed.add_argument("--model", required=True, metavar="MODEL", help=model)
    out = "triplets to write (.jsonl); FILE.dropped.jsonl lists questions that a rule left out"
    needed.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)

    pairs = parser.add_argument_group("pairs")
    on = (
        "prompt to sample on (default short); both prefers questions that yield pairs on both, and also writes "
        "NAME.sft_short.jsonl, NAME.sft_long.jsonl, NAME.po_short.jsonl and NAME.po_long.jsonl"
    )
    pairs.add_argument("--on", choices=["short", "long", "both"], default="short", help=on)
    size = "stop when there are N pairs (default 5000)"
    pairs.add_argument("--size", type=int, default=5000, metavar="N", help=size)
    skip = "go on after bad rows and write them to FILE.rejects.jsonl; without it the run stops before it samples"
    pairs.add_argument("--skip-bad", action="store_true", help=skip)

    how = parser.add_argument_group("sampling")
    how.add_argument("--samples", type=int, default=32, metavar="N", help="answers a prompt (default 32)")
    how.add_argument("--temperature", type=float, default=0.85, metavar="T", help="default 0.85")
    how.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1, none)")
    limit = "longest answer in tokens (default 512)"
    how.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help=limit)
    batch = (
        "answers to a prompt that are asked for at once (default 0, all of them): fewer where they do not fit on the "
        "device, or where the server gives no more in a request; another batch gives other samples"
    )
    how.add_argument("--batch", type=int, default=0, metavar="N", help=batch)
    how.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all draws (default 0)")

    local = parser.add_argument_group("with --backend hf")
    local.add_argument("--device", metavar="DEVICE", help="torch device (default: the GPU where there is one)")

    server = parser.add_argument_group(
        "with --backend openai; the key is taken from OPENAI_API_KEY",
        "what is not given here is the server's default, such as top_k and repetition_penalty, which vLLM takes from "
        "the model's generation_config.json unless it is started with --generation-config vllm",
    )
    server.add_argument("--base-url", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    server.add_argument("--concurrency", type=int, default=16, metavar="N", help="prompts at once (default 16)")
    patience = "seconds to go on asking a server that is away or busy (default 600)"
    server.add_argument("--patience", type=float, default=600.0, metavar="S", help=patience)

    parser.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")
    return parser


def _report(summary: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    run(main)
