"""Checks a command against the parser of its program or the configuration, in this process."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
from shown import ROOT, Command
from studies_commands import STUDIES

from solopo_nemo.commands.dispatch import TOOLS, recipes
from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.config.usage import describe
from solopo_nemo.config.world import check_world, local_world
from solopo_nemo.runtime.paths import EMBEDDED_MODEL


class Wrong(Exception):
    """The command would not run."""


class _Parsed(Exception):
    """The program has taken its arguments."""


def check(command: Command) -> None:
    """Check one command.

    Raises:
        Wrong: its program or an option does not exist.
        UserError: what the program itself would say.
    """
    program, *arguments = command.words
    if program in ("python", ".venv/bin/python"):
        _python(arguments)
    elif program in ("torchrun", ".venv/bin/torchrun"):
        _torchrun(arguments)
    elif program == "tools/launch.sh":
        _launch(arguments)
    elif program in ("solopo", ".venv/bin/solopo"):
        _solopo(arguments)
    elif program == "tools/setup.sh":
        _known(arguments, _usage(program))
    elif program == "docker":
        _docker(arguments)
    elif program in ("pip", ".venv/bin/pip"):
        _pip(arguments)
    elif program == ".venv/bin/mkdocs":
        _mkdocs(arguments)
    elif program in ("kubectl", "sky"):  # tests/tools/test_deploy.py checks the file
        if not (ROOT / arguments[-1]).is_file():
            raise Wrong(f"{arguments[-1]}: no such file")
    elif program != "mkdir":
        raise Wrong(f"{program}: how is it checked? See {__file__}")


def _python(arguments: Sequence[str]) -> None:
    if arguments[:2] == ["-m", "pytest"]:
        _pytest(arguments[2:])
        return
    script, *rest = arguments
    folder, _, name = script.removesuffix(".py").partition("/")
    if not (ROOT / script).is_file():
        raise Wrong(f"{script}: no such program")
    if folder == "recipes" or name in TOOLS:
        _solopo([name, *rest])
    elif folder == "tools" and name in STUDIES:
        _parse(import_module(STUDIES[name]), rest)
    else:
        _parse(_module(script), rest)


def _solopo(arguments: Sequence[str]) -> None:
    """A recipe or a tool by name; each has its thin file in recipes/ or tools/ too."""
    name, *rest = arguments
    if name == "launch":
        _launch(rest)
    elif name == "cache_reference":
        _named_recipe(rest)
    elif name in ("plan", "check"):
        parsed = import_module(f"solopo_nemo.commands.{name}")._parser().parse_intermixed_args(rest)
        if parsed.overrides:  # without any, a page only names the tool
            config = _named_recipe(parsed.overrides)
            check_world(config, parsed.gpus or local_world(config))
    elif name == "grow":
        command = import_module("solopo_nemo.commands.grow")
        given = command._parser().parse_intermixed_args(rest)
        command._check(replace(command._settings(given), model=str(EMBEDDED_MODEL)))
    elif name in STUDIES:
        _parse(import_module(STUDIES[name]), rest)
    elif name in TOOLS:
        _parse(import_module(f"solopo_nemo.commands.{name}"), rest)
    elif name != "--help":
        _recipe(name, rest)


def _recipe(name: str, overrides: Sequence[str], world: int | None = None) -> RunConfig:
    if not (ROOT / "recipes" / f"{name}.py").is_file() or name not in recipes():
        raise Wrong(f"{name}: no such recipe")
    if "--help" in overrides:
        describe(name)
    config = load_config(name, [word for word in overrides if word != "--help"])
    check_world(config, local_world(config) if world is None else world)
    return config


def _named_recipe(words: Sequence[str], world: int | None = None) -> RunConfig:
    """As tools/plan.py and tools/cache_reference.py take them: the name may be left out."""
    named = bool(words) and "=" not in words[0]
    name, overrides = (words[0], words[1:]) if named else ("solo_dpo", words)
    if world is not None:
        return _recipe(name, overrides, world)
    return load_config(name, list(overrides))


def _program(words: Sequence[str], world: int) -> None:
    script, *rest = words
    name = script.removesuffix(".py").split("/")[-1]
    if name == "cache_reference":
        _named_recipe(rest, world)
    elif script.startswith("recipes/") or script in recipes():
        _recipe(name, rest, world)
    elif script.startswith("docs/examples/") and (ROOT / script).is_file():
        options = set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / script).read_text()))
        _known([word for word in rest if word.startswith("-")], options)
    else:
        raise Wrong(f"{script}: not a program for several ranks")


def _torchrun(arguments: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    nodes = int(parsed.nnodes.split(":")[-1])  # MIN:MAX
    _program([parsed.training_script, *parsed.training_script_args], nodes * int(parsed.nproc_per_node))


def _launch(arguments: Sequence[str]) -> None:
    """Options as read_options of tools/launch.sh takes them; `--dry-run` alone has no value."""
    known, words, given = _usage("tools/launch.sh"), list(arguments), {"--nodes": "1"}
    while words and words[0].startswith("-"):
        option, separate, value = words.pop(0).partition("=")
        _known([option], known)
        if option not in ("--dry-run", "--help"):
            given[option] = value if separate else words.pop(0)
    if words[0].startswith("tools/") and words[0] != "tools/cache_reference.py":  # one process
        _python(words)
        return
    ranks = given.get("--gpus-per-node", given.get("--ranks-per-node", "1"))
    _program(words, int(given["--nodes"]) * int(ranks))


def _docker(arguments: Sequence[str]) -> None:
    target = arguments[arguments.index("--target") + 1] if "--target" in arguments else None
    if target and f" AS {target}\n" not in (ROOT / "Dockerfile").read_text():
        raise Wrong(f"--target {target}: the Dockerfile has no such target")
    if "python" in arguments:
        _python(arguments[arguments.index("python") + 1 :])


def _pytest(arguments: Sequence[str]) -> None:
    """Paths exist; of the expression after -m every word is a marker of pyproject.toml."""
    words = list(arguments)
    if "-m" in words:
        place = words.index("-m")
        markers = re.findall(r'^  "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        _known(re.findall(r"\w+", words[place + 1]), {*markers, "and", "or", "not"})
        del words[place : place + 2]
    for word in words:
        if not (ROOT / word).exists():
            raise Wrong(f"{word}: no such test")


def _pip(arguments: Sequence[str]) -> None:
    from pip._internal.commands import create_command

    name, *rest = arguments
    create_command(name).parse_args(list(rest))


def _mkdocs(arguments: Sequence[str]) -> None:
    cli = pytest.importorskip("mkdocs.__main__").cli
    name, *rest = arguments
    cli.commands[name].make_context(name, list(rest))


def _known(words: Sequence[str], known: set[str]) -> None:
    for word in words:
        if word not in known:
            raise Wrong(f"{word}: not one of {', '.join(sorted(known))}")


def _usage(script: str) -> set[str]:
    """The options that the usage text of a shell script lists."""
    text = (ROOT / script).read_text().split("TEXT'\n")[1].split("\nTEXT\n")[0]
    return set(re.findall(r"(?:^  |, )(--[\w-]+)", text, re.MULTILINE)) | {"--help"}


@cache
def _module(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shown_{script.replace('/', '_')[:-3]}", ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse(module: ModuleType, arguments: Sequence[str]) -> None:
    """Let the program parse its arguments, and go no further."""
    real = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        real(parser, *given)
        raise _Parsed

    takes_arguments = bool(signature(module.main).parameters)
    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse),
        patch.object(sys, "argv", [str(module.__file__), *arguments]),
        suppress(_Parsed),
    ):
        module.main(list(arguments)) if takes_arguments else module.main()
