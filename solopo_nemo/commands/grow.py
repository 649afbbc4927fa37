"""Grow the context window in rounds: build contexts, sample pairs, train and evaluate at one length after the other.

Each round samples with the model of the round before. Without arguments it grows the embedded model, in minutes on
two cores. To resume an interrupted growth, start the same command again; --lengths may have more lengths then.

  solopo grow --out outputs/grow
  solopo grow --lengths 4K,8K,16K --source musique_ans_v1.0_train.jsonl --model Qwen2.5-7B-Instruct/ \\
      --sampling "--backend openai --serve 'vllm serve {model} --port {port}'" --out outputs/grow \\
      solo_dpo model=custom parallel.tensor=4 parallel.sequence=true
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.commands.dispatch import split_recipe
from solopo_nemo.runtime.cli import ArgumentParser, list_of, path_or_name, positive_count, show_json
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.paths import EMBEDDED_MODEL

if TYPE_CHECKING:
    from solopo_nemo.growth.plan import GrowthSettings

_BUILTIN: dict[str, Any] = {
    "lengths": (2, 4, 8),
    "short": 1,
    "short_tokens": "",
    "sampling": (
        *("--backend", "hf", "--samples", "8", "--temperature", "1.2", "--max-new-tokens", "48"),
        *("--size", "320"),
    ),
    "keys": ("optim.lr=3.0e-4", "optim.min_lr=3.0e-5"),  # a round is short: 20 steps
}
_OWN: dict[str, Any] = {
    "lengths": (),
    "short": 2048,
    "short_tokens": "1100",
    "sampling": ("--backend", "hf"),
    "keys": (),
}


_SET = {
    "contexts": "--source --tokenizer --seed --short-tokens --long-tokens --out",
    "sampling": "--contexts --model --seed --out",
    "evaluation": "--model --suite --lengths --out --compare",
}
"""Options of the tools that each round sets."""
_EXTENDS = ("model.rope_scaling=", "--yarn")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    given = _parser().parse_intermixed_args(arguments)
    from rich.console import Console

    from solopo_nemo.growth.plan import phases

    settings = _settings(given)
    _check(settings)
    if given.dry_run:
        for number in range(len(settings.lengths) + 1):
            for phase in phases(settings, number):
                print(phase.shown)
        return 0
    _check_program(settings)
    settings = replace(settings, content=_content(settings))
    from solopo_nemo.growth.page import rounds_table, write_growth_page
    from solopo_nemo.growth.rounds import grow, summary
    from solopo_nemo.training.output_lock import OutputLock

    with OutputLock(settings.out):
        code, rounds = grow(settings)
        if rounds:
            page = write_growth_page(settings, rounds)
    if rounds:
        console = Console(stderr=True, markup=False, highlight=False)
        console.print(rounds_table(settings, rounds).terminal())
        console.print(f"policy: {summary(settings, rounds)['policy']}\npage: {page}", soft_wrap=True)
        if not code:
            show_json(given, summary(settings, rounds))
    return code


def _settings(given: Any) -> GrowthSettings:
    from solopo_nemo.growth.plan import BUILTIN, GrowthSettings

    builtin = given.source == BUILTIN
    require(builtin or given.lengths, "--lengths: needed with --source, such as 8K,16K,32K")
    require(builtin or given.model, "--model: needed with --source, the Hugging Face folder to start from")
    recipe, overrides = split_recipe(given.overrides)
    default = _BUILTIN if builtin else _OWN
    return GrowthSettings(
        recipe=recipe,
        overrides=(*default["keys"], *overrides),
        model=given.model or str(EMBEDDED_MODEL),
        source=given.source,
        lengths=given.lengths or default["lengths"],
        short=given.short or default["short"],
        short_tokens=given.short_tokens or default["short_tokens"],
        suite="builtin" if builtin else "ruler_qa",
        contexts=_words(given, "contexts"),
        sampling=(*default["sampling"], *_words(given, "sampling")),
        evaluation=_words(given, "evaluation"),
        reach=given.reach,
        guard=given.guard,
        out=given.out,
    )


def _words(given: Any, name: str) -> tuple[str, ...]:
    text = getattr(given, name)
    try:
        words = tuple(shlex.split(text or ""))
    except ValueError as error:
        raise UserError(f"--{name} {text}: cannot be split into words ({error})") from None
    own = [word for word in words if word.startswith("--") and _sets(name, word.partition("=")[0])]
    require(not own, f"--{name} {' '.join(own)}: each round sets it")
    return words


def _sets(name: str, option: str) -> bool:
    """True if the rounds set an option of a tool, which may be shortened; `--long` is another than `--long-tokens`."""
    return any(own.startswith(option) and own[len(option) :][:1] != "-" for own in _SET[name].split())


def _check(settings: GrowthSettings) -> None:
    """Refuse what the commands of the rounds would refuse of their options, before the first of them runs."""
    from solopo_nemo.commands import build_contexts, sample_pairs
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.families.hf import read_config
    from solopo_nemo.growth.plan import phases

    folder = Path(settings.model)
    require((folder / "config.json").is_file(), f"--model {folder}: no Hugging Face folder (it has no config.json)")
    weights = "no safetensors, which training reads: transformers' save_pretrained(folder) writes them"
    require(any(folder.glob("*.safetensors")), f"--model {folder}: {weights}")
    longest, window = settings.evaluated(len(settings.lengths))[-1], read_config(folder).window
    extends = [word for word in (*settings.overrides, *settings.evaluation) if word.startswith(_EXTENDS)]
    require(
        not extends and (settings.builtin or window is None or longest <= window),
        f"--model {folder}: has a window of {window} tokens, and the evaluation goes to {longest}, twice the last "
        "length: write the rope_scaling that extends it into its config.json, which all rounds read"
        if not extends
        else f"{extends[0]}: would extend the window again in each round: write rope_scaling into {folder}/config.json",
    )
    for phase in phases(settings, 1):
        module, name, *words = phase.words[1:]
        if phase.name == "training":
            config = load_config(name, words)
            whole = not config.peft.on or config.peft.merge
            require(whole, "peft: a round goes on from the whole policy: give peft.merge=true")
        elif module == "solopo_nemo":
            parsed = import_module(f"solopo_nemo.commands.{name}")._parser().parse_args(words)
            if phase.name == "pairs":
                sample_pairs.checked(parsed, ExitStack())
            elif phase.name == "contexts":
                build_contexts.checked(parsed)


def _check_program(settings: GrowthSettings) -> None:
    """Refuse a server that cannot be started here. A dry run may be on another machine."""
    from solopo_nemo.builders.pairs.serving import require_program
    from solopo_nemo.commands import sample_pairs
    from solopo_nemo.growth.plan import phases

    (words,) = (phase.words[3:] for phase in phases(settings, 1) if phase.name == "pairs")
    if serve := sample_pairs._parser().parse_args(words).serve:
        require_program(serve)


def _content(settings: GrowthSettings) -> str:
    """Return the hash of the questions. A file that is missing is named before the starting model is evaluated."""
    from solopo_nemo.builders.contexts.sources.source import RowSource
    from solopo_nemo.commands import build_contexts
    from solopo_nemo.growth.plan import phases

    if settings.builtin:
        return ""
    given = build_contexts._parser().parse_args(phases(settings, 1)[0].words[3:])
    return RowSource(given.source, given.subset, given.split).digest()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    recipe = "recipe (default solo_dpo) and its overrides, the same in every round"
    parser.add_argument("overrides", nargs="*", metavar="RECIPE key=value", help=recipe)
    option = parser.options("rounds")
    lengths = (
        "tokens of the long prompt in each round, such as 8K,16K,32K,64K; of the built-in questions multiples of the "
        "short length (default 2,4,8)"
    )
    option("--lengths N,N", lengths, type=list_of(positive_count))
    option("--source PATH|NAME", "questions; see --source of build_contexts", "builtin", type=path_or_name)
    model = "Hugging Face folder to start from (default with the built-in questions: the embedded model)"
    option("--model FOLDER", model, type=path_or_name)
    option("--short-tokens N", "token target of the short prompt; see build_contexts (default 1100)")
    option("--out FOLDER", "folder of the rounds and of the page", Path("outputs/grow"))
    option = parser.options(
        "the rule for the next round",
        "the next round starts if the score at this round's length is at least --reach times the short score, and the "
        "short score is at most --guard points below that of the starting model",
    )
    option("--short N", "length of the short score (default 2K, answer included; built-in: 1)", type=positive_count)
    option("--reach S", "smallest share of the short score", 0.8)
    option("--guard P", "largest loss of the short score, in points", 5.0)
    option = parser.options("more options of the tools, in quotes: --sampling='--samples 16'")
    option("--contexts OPTIONS", "options of build_contexts, such as --limit 8000 --workers 8")
    option("--sampling OPTIONS", "options of sample_pairs, such as --backend openai --base-url URL")
    option("--evaluation OPTIONS", "options of evaluate, such as --data FOLDER --limit 100")
    option = parser.options()
    option("--dry-run", "print the commands of all rounds, without passwords and keys, and run none")
    parser.add_json()
    return parser
