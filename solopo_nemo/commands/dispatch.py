"""Lookup of commands by name, and the text of ``solopo --help``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import CONF

TOOLS = (
    "build_questions",
    "build_contexts",
    "sample_pairs",
    "grow",
    "convert_pairs",
    "inspect_triplets",
    "cache_reference",
    "convert",
    "merge_adapter",
    "evaluate",
    "plan",
    "check",
    "doctor",
    "launch",
)
"""Modules of this package with a docstring and a ``main(arguments)`` that returns an exit code."""
PLUGINS = "solopo.commands"
"""Entry point group for commands of other packages: functions with the signature of a tool's ``main``."""


def recipes() -> list[str]:
    """Names of the recipes."""
    return sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "base")


def split_recipe(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split arguments into the recipe (default: solo_dpo) and its overrides.

    Raises:
        UserError: the recipe does not exist.
    """
    named = bool(words) and "=" not in words[0]
    recipe = words[0] if named else "solo_dpo"
    if recipe not in recipes():
        raise UserError(f"{recipe}: no such recipe, there are {', '.join(recipes())}; overrides are written key=value")
    return recipe, list(words[named:])


def dispatch(words: Sequence[str]) -> int | None:
    """Run the command with the name ``words[0]`` and the arguments ``words[1:]``, and return its exit code.

    Raises:
        UserError: the command does not exist, or it raised the error.
    """
    name, *arguments = words or ["--help"]
    if (tool := name.replace("-", "_")) in TOOLS:
        return import_module(f"solopo_nemo.commands.{tool}").main(arguments)
    if name in recipes():
        return _run_recipe(name, arguments)
    from importlib.metadata import entry_points

    plugins = {plugin.name: plugin for plugin in entry_points(group=PLUGINS)}
    if name in plugins:
        return plugins[name].load()(arguments)
    if name in ("-h", "--help"):
        print(_overview(sorted(plugins)))
        return 0
    raise UserError(f"{name}: no such command; solopo --help lists them")


def _run_recipe(name: str, arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        from solopo_nemo.config.usage import describe

        print(describe(name, arguments))
        return 0
    from solopo_nemo.training.launch import run_recipe

    return run_recipe(name, arguments)


def _overview(plugins: Sequence[str]) -> str:
    first_lines = {name: (CONF / f"{name}.yaml").open().readline().strip("# \n") for name in recipes()}
    # read, not imported: the imports of all tools take half a second
    tools = {n: Path(__file__).with_name(f"{n}.py").read_text().split('"""')[1].splitlines()[0] for n in TOOLS}
    return "\n".join(
        [
            "usage: solopo RECIPE [key=value ...]",
            "       solopo TOOL [arguments]",
            "",
            "solopo NAME --help lists the keys of a recipe, or the arguments of a tool.",
            "",
            "recipes",
            *(f"  {name:<17} {text}" for name, text in first_lines.items()),
            "",
            "tools",
            *(f"  {name:<17} {text}" for name, text in tools.items()),
            "",
            f"of other packages: {', '.join(plugins) or 'none installed'}",
            "  with the studies (pip install -e studies in a checkout): benchmark, collapse, gpu_check, reproduce",
        ]
    )
