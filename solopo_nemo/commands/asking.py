"""What the tools that ask a model have in common: options, the backend, and the end of their reports."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from solopo_nemo.runtime.cli import (
    EXIT_RESUMABLE,
    STOPPED,
    TEMPLATE_KWARGS,
    ArgumentParser,
    add_server,
    add_template_kwargs,
    path_or_name,
)
from solopo_nemo.runtime.credentials import Server
from solopo_nemo.runtime.errors import require, require_at_least
from solopo_nemo.runtime.units import token_count

if TYPE_CHECKING:
    from rich.console import Console

    from solopo_nemo.builders.pairs.backend import Backend, Sampling
    from solopo_nemo.data.tokenize import TripletEncoder


def encoder_of(given: argparse.Namespace, day: str | None = None, **options: Any) -> TripletEncoder:
    """The encoder of `--tokenizer` and `--chat-template-kwargs`.

    Args:
        given: parsed arguments.
        day: the date that the chat template prints.
        **options: further arguments of the encoder.
    """
    from solopo_nemo.data.tokenize import TripletEncoder
    from solopo_nemo.data.tokenizer_files import load_tokenizer
    from solopo_nemo.training.prepare import find_tokenizer

    tokenizer = load_tokenizer(find_tokenizer(given.tokenizer), day=day)
    return TripletEncoder(tokenizer, given.chat_template_kwargs, TEMPLATE_KWARGS, **options)


def add_backend(option: Callable[..., None]) -> None:
    """Add `--backend` and `--model`."""
    backend = "hf: generate here with transformers; openai: ask an OpenAI-compatible server (vLLM, NIM, SGLang, ...)"
    option("--backend", backend, choices=["hf", "openai"], required=True)
    model = "local Hugging Face folder, or the name that the server gives the model"
    option("--model MODEL", model, type=path_or_name, required=True)


def add_sampling(parser: ArgumentParser, *, samples: int, temperature: float, max_new_tokens: int) -> None:
    """Add the options of `Sampling` with the defaults of a tool, those of the backends, and `--json`."""
    option = parser.options("sampling")
    option("--samples N", "answers to each prompt", samples)
    option("--temperature T", "temperature of the softmax", temperature)
    option("--top-p P", "nucleus sampling; 1 switches it off", 1.0)
    option("--top-k N", "draw from the N most probable tokens (default: all; with a server its own default)", type=int)
    option("--max-new-tokens N", "longest answer in tokens", max_new_tokens, type=token_count)
    batch = (
        "answers to a prompt in one batch or request, 0 for all of them; give fewer if they do not fit on the device, "
        "or if the server limits a request; another batch size gives other samples"
    )
    option("--batch N", batch, 0)
    option("--seed N", "seed of all draws", 0)
    add_template_kwargs(option)
    parser.options("with --backend hf")("--device DEVICE", "torch device (default: the GPU if there is one)")
    option = parser.options(
        "with --backend openai; the key is taken from OPENAI_API_KEY",
        "settings without an option here have the server's defaults, such as repetition_penalty, which vLLM takes from "
        "the model's generation_config.json unless it is started with --generation-config vllm",
    )
    option("--base-url URL", "address of the server, such as http://127.0.0.1:8000/v1")
    option("--concurrency N", "prompts at the same time", 16)
    add_server(option)
    parser.add_json()
    parser.set_defaults(date=None, server=None)


def backend_maker(given: argparse.Namespace, stack: ExitStack) -> Callable[[Sampling], Backend]:
    """Check the options of the backend; return what makes it. A server that it starts is stopped by the stack.

    Raises:
        UserError: An option is missing or out of range.
    """
    require(
        bool(given.backend == "hf" or given.base_url or given.serve),
        "--base-url: needed with --backend openai, such as http://127.0.0.1:8000/v1 (or --serve)",
    )
    if given.base_url:
        Server.of(given.base_url, "--base-url")
    require(given.backend == "openai" or not given.serve, "--serve: starts a server; give --backend openai")
    require_at_least(1, concurrency=given.concurrency)
    if given.serve:
        from solopo_nemo.builders.pairs.serving import serve_words

        serve_words(given.serve)

    def make(sampling: Sampling) -> Backend:
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

    return make


@contextmanager
def resumable() -> Iterator[ExitStack]:
    """End the process at once on Ctrl-C, with the exit code that says that the same command goes on."""
    try:
        with ExitStack() as stack:
            yield stack
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        # sys.exit would wait for the threads, which wait for their answers
        os._exit(EXIT_RESUMABLE)


def show_asked(console: Console, summary: dict[str, Any]) -> None:
    """Print what became of the prompts, and their cost."""
    for reason, count in summary["not_whole"].items():
        console.print(f"{count} samples are not whole: {reason}", markup=False)
    for reason, count in summary["refused"].items():
        console.print(f"{count} prompts refused: {reason}", markup=False)
    if summary["cut_prompts"]:
        console.print(f"{summary['cut_prompts']} prompts were cut by the server: start it with a longer window")
    cost = summary["cost"]
    unknown = f", {cost['without_usage']} of them without a count of tokens" if cost["without_usage"] else ""
    console.print(
        f"asked in this run: {cost['requests']} requests{unknown}, {cost['prompt_tokens']} prompt tokens, "
        f"{cost['answer_tokens']} answer tokens"
    )
