"""Measure training steps of this project and of TRL in new processes: seconds, and peak memory above the loaded model.

Finished runs are stored in the JSON file --out and not measured again. To resume an interrupted run, start the same
command again. `all` runs all measurements of docs/performance.md and writes that page.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.cli import ArgumentParser, list_of, show_json
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.units import token_count
from studies.benchmarks import commands, suite
from studies.benchmarks.head import HEADS, HeadSpec
from studies.benchmarks.spec import LORA, LORA_OFF, PAIR, PEERS, Shape, StepSpec
from studies.paths import ROOT

_LAYOUT = ("tensor", "sequence", "context", "context_mode", "pipeline", "data")
_PLACES = ("--out", "--work", "--peer-venv", "--again", "--json")


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    for name in ("repeats", "budget", "unit", "start", "row_chunk"):
        if getattr(arguments, name, 1) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    summary = arguments.function(arguments, _command(argv))
    show_json(arguments, summary)
    return 0


def _command(argv: Sequence[str]) -> str:
    """The command line without paths. It is stored in the results and shown in the document."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name, separate, _ = word.partition("=")
        if name not in _PLACES:
            kept.append(word)
        elif not separate and name not in ("--again", "--json"):
            next(words, None)
    return f"python tools/benchmark.py {shlex.join(kept)}"


def _steps(arguments: argparse.Namespace, command: str) -> Any:
    groups = [[_spec(arguments, system, long) for system in arguments.systems] for long in arguments.long]
    return commands.measure_steps(arguments.command, groups, arguments.repeats, _places(arguments), command)


def _scaling(arguments: argparse.Namespace, command: str) -> Any:
    layouts = list(itertools.product(arguments.tensor, arguments.context))
    groups = [
        [
            _spec(arguments, system, long, tensor=tensor, context=context, sequence=arguments.sequence and tensor > 1)
            for tensor, context in layouts
            for system in arguments.systems
        ]
        for long in arguments.long
    ]
    return commands.measure_steps("scaling", groups, arguments.repeats, _places(arguments), command)


def _memory(arguments: argparse.Namespace, command: str) -> Any:
    specs = [_spec(arguments, system, arguments.start) for system in arguments.systems]
    return commands.search_longest(specs, arguments.budget, arguments.unit, _places(arguments), command)


def _head(arguments: argparse.Namespace, command: str) -> Any:
    names = ("response", "hidden", "vocabulary", "row_chunk", "threads")
    common = {name: getattr(arguments, name) for name in names}
    for unknown in set(arguments.heads) - set(HEADS):
        raise UserError(f"--heads {unknown}: must be one of {', '.join(HEADS)}")
    specs = [HeadSpec(head=head, long=long, **common) for long in arguments.long for head in arguments.heads]
    return commands.measure_heads(specs, arguments.repeats, _places(arguments), command)


def _startup(arguments: argparse.Namespace, command: str) -> Any:
    return commands.measure_starts(arguments.repeats, _places(arguments), command)


def _all(arguments: argparse.Namespace, command: str) -> Any:
    def measure(words: Sequence[str], out: Path) -> int:
        again = ["--again"] if arguments.again else []
        places = ["--out", str(out), "--work", str(arguments.work), "--peer-venv", str(arguments.peer_venv)]
        return main([*words, *places, *again])

    suite.run_suite(arguments.suite, arguments.results, arguments.only, measure)
    return _document(arguments, command)


def _document(arguments: argparse.Namespace, command: str) -> Any:
    from studies.benchmarks import document

    return {"document": str(document.write(arguments.results, arguments.document))}


def _places(arguments: argparse.Namespace) -> commands.Places:
    out = arguments.out or Path("outputs/benchmark") / f"{arguments.command}.json"
    check_writable(out.parent, "--out")
    return commands.Places(out, arguments.work, arguments.peer_venv, arguments.again)


def _spec(arguments: argparse.Namespace, system: str, long: int, **values: Any) -> StepSpec:
    """The specification from the options. Peers always run on one rank."""
    shape = {name: getattr(arguments, name) for name in ("hidden", "layers", "heads", "kv_heads", "ffn", "vocabulary")}
    given = {name: getattr(arguments, name) for name in ("short", "response", "recompute", "threads", "steps")}
    if system not in PEERS:
        given |= {name: getattr(arguments, name) for name in _LAYOUT if hasattr(arguments, name)} | values
        given["overrides"] = tuple(arguments.override)
    return StepSpec(system=system, long=long, shape=Shape(**shape, tied=arguments.tied), **given)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    subcommands = parser.add_subparsers(dest="command", required=True)

    step = subcommands.add_parser("step", help="seconds and peak memory of a training step, by prompt length")
    peer = subcommands.add_parser("peer", help="the same beside TRL's DPOTrainer, runs alternating, results compared")
    for command, systems in ((step, "solo_dpo,long_po"), (peer, "solo_dpo,long_po,trl_best")):
        _add_places(command)
        _add_lengths(command)
        _add_model(command, systems, threads=2, steps=3)
        command.set_defaults(function=_steps)
    _add_layout(step)

    memory = subcommands.add_parser("memory", help="longest prompt within a budget, by bisection in fresh processes")
    _add_places(memory)
    memory.add_argument(
        "--budget", type=float, default=1.5, metavar="GIB", help="a rank, above the model (default 1.5)"
    )
    memory.add_argument("--start", type=token_count, default=8192, metavar="N", help="first length tried (default 8K)")
    memory.add_argument("--unit", type=token_count, default=256, metavar="N", help="of the lengths (default 256)")
    _add_model(memory, "solo_dpo,trl_best", threads=2, steps=2)
    _add_layout(memory)
    memory.set_defaults(function=_memory)

    scaling = subcommands.add_parser("scaling", help="peak a rank and seconds against context and tensor parallelism")
    _add_places(scaling)
    _add_lengths(scaling)
    _add_model(scaling, "solo_dpo", threads=1, steps=3)
    sizes = list_of(int)
    scaling.add_argument("--context", type=sizes, default=[1, 2, 4], metavar="N,N", help="default 1,2,4")
    scaling.add_argument("--tensor", type=sizes, default=[1], metavar="N,N", help="default 1")
    scaling.add_argument("--sequence", action="store_true", help="sequence parallelism where tensor is above 1")
    scaling.add_argument("--context-mode", default="p2p", metavar="MODE", help="default p2p")
    scaling.set_defaults(function=_scaling)

    head = subcommands.add_parser("head", help="memory of full logits, chunked and response-only, by prompt length")
    _add_places(head)
    _add_lengths(head)
    head.add_argument("--heads", type=list_of(str), default=list(HEADS), metavar="HEAD,HEAD", help=", ".join(HEADS))
    _add_numbers(head, response=128, hidden=128, vocabulary=152064, row_chunk=512, threads=2)
    head.set_defaults(function=_head)

    startup = subcommands.add_parser("startup", help="seconds of each --help, and of the default to its first step")
    _add_places(startup)
    startup.add_argument("--repeats", type=int, default=1, metavar="N", help="rounds (default 1)")
    startup.set_defaults(function=_startup)

    everything = subcommands.add_parser("all", help="every measurement of a suite, then the document")
    default = suite.SUITE.relative_to(ROOT)
    everything.add_argument("--suite", type=Path, default=suite.SUITE, metavar="YAML", help=f"default {default}")
    everything.add_argument("--only", type=list_of(str), metavar="NAME,NAME", help="these of its entries alone")
    _add_places(everything, out=False)
    everything.set_defaults(function=_all)

    page = subcommands.add_parser("document", help="docs/performance.md from the results that are there")
    page.add_json()
    page.set_defaults(function=_document)
    for command in (everything, page):
        command.add_argument("--results", type=Path, default=suite.RESULTS, metavar="FOLDER", help="the JSON files")
        command.add_argument("--document", type=Path, default=suite.DOCUMENT, metavar="FILE", help="what is written")
    return parser


def _add_places(command: ArgumentParser, out: bool = True) -> None:
    group = command.add_argument_group("where")
    if out:
        group.add_argument("--out", type=Path, metavar="FILE", help="results (default outputs/benchmark/COMMAND.json)")
    work = Path("outputs/benchmark/work")
    group.add_argument("--work", type=Path, default=work, metavar="FOLDER", help=f"scratch files (default {work})")
    venv = "TRL's environment, made where it is missing (default .venv-peer)"
    group.add_argument("--peer-venv", type=Path, default=Path(".venv-peer"), metavar="FOLDER", help=venv)
    group.add_argument("--again", action="store_true", help="measure what is in the results, too")
    command.add_json()


def _add_lengths(command: argparse.ArgumentParser) -> None:
    lengths, repeats = (
        "tokens of the long prompt, such as 8192 or 8K (default 4K,8K)",
        "rounds, alternating (default 1)",
    )
    command.add_argument("--long", type=list_of(token_count), default=[4096, 8192], metavar="N,N", help=lengths)
    command.add_argument("--repeats", type=int, default=1, metavar="N", help=repeats)


def _add_model(command: argparse.ArgumentParser, systems: str, threads: int, steps: int) -> None:
    what = command.add_argument_group("what is trained")
    suffixes = f"{LORA} or {LORA_OFF} for adapters, {PAIR} for short pairs"
    known = f"recipes ({suffixes}), {', '.join(PEERS)} (default {systems})"
    what.add_argument("--systems", type=list_of(str), default=systems.split(","), metavar="NAME,NAME", help=known)
    what.add_argument("--recompute", choices=("none", "selective", "full"), default="none", help="default none")
    override = "override of our recipe, such as model.logits_chunk_size=64 (repeatable)"
    what.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help=override)
    _add_numbers(what, short=1024, response=128, steps=steps, threads=threads)
    shape = Shape()
    _add_numbers(what, **{k: v for k, v in vars(shape).items() if k != "tied"})
    what.add_argument("--tied", action="store_true", help="one tensor for input and output embedding")


def _add_numbers(command: Any, **defaults: int) -> None:
    for name, default in defaults.items():
        option, kind = f"--{name.replace('_', '-')}", token_count if name == "short" else int
        command.add_argument(option, type=kind, default=default, metavar="N", help=f"default {default}")


def _add_layout(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("layout of our recipe, as parallel.*")
    for name in ("tensor", "context", "pipeline", "data"):
        group.add_argument(f"--{name}", type=int, default=1, metavar="N", help="ranks (default 1)")
    group.add_argument("--sequence", action="store_true", help="sequence parallelism")
    group.add_argument("--context-mode", default="p2p", metavar="MODE", help="default p2p")
