"""The command line: declaration of arguments, and exit codes of all commands."""

from __future__ import annotations

import argparse
import atexit
import json
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from solopo_nemo.runtime.credentials import masked_command
from solopo_nemo.runtime.environment import provide_home
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.paths import expand_home
from solopo_nemo.runtime.signals import ignore_signals
from solopo_nemo.runtime.units import token_count

T = TypeVar("T")
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75
TEMPLATE_KWARGS = "--chat-template-kwargs"
STOPPED = "stopped: the same command goes on from here"


def command_name() -> str:
    """The command of this process in words: ``solopo plan``, or ``python tools/plan.py``."""
    script, *words = sys.argv
    if Path(script).name in ("solopo", "__main__.py"):
        return " ".join(["solopo", *words[:1]])
    return f"python {script}"


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises a UserError for bad arguments. :func:`run` turns it into one line."""

    def __init__(self, description: str | None = None, **settings: Any) -> None:
        settings = {"prog": command_name(), "formatter_class": argparse.RawDescriptionHelpFormatter, **settings}
        super().__init__(description=description, **settings)
        for kind in (Path, type(Path())):
            self.register("type", kind, _path)

    def error(self, message: str) -> NoReturn:
        """Raises a UserError with argparse's message."""
        raise UserError(f"{message} ({self.prog} --help lists the arguments)")

    def options(self, title: str = "", text: str | None = None) -> Callable[..., None]:
        """Creates a group of options, and returns the function that adds an option to it.

        Args:
            title: heading of the group; empty adds to the parser itself.
            text: text below the heading.

        Example:
            >>> option = parser.options("sampling")
            >>> option("--seed N", "seed of all draws", 0)  # an int, shown as "seed of all draws (default 0)"
            >>> option("--skip-bad", "go on after bad rows")  # a switch
            >>> option("--out FILE", "file to write", type=Path, required=True)
        """
        where = self.add_argument_group(title, text) if title else self

        def option(names: str, help: str, default: Any = None, **settings: Any) -> None:
            name, _, metavar = names.partition(" ")
            if default is not None:
                settings, help = {"type": type(default), **settings}, f"{help} (default {default})"
            if metavar:
                settings["metavar"] = metavar
            elif "choices" not in settings:
                settings["action"] = "store_true"
            where.add_argument(name, default=default, help=help, **settings)

        return option

    def add_json(self) -> None:
        """Adds ``--json``, which :func:`show_json` reads."""
        self.add_argument(
            "--json", action="store_true", help="print the summary as the last line of stdout, as one line of JSON"
        )


def json_object(text: str) -> dict[str, Any]:
    """Argument type: a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_OWN_FIELDS = (
    "model messages prompt n seed stream temperature top_p top_k max_tokens max_completion_tokens chat_template_kwargs"
)


def extra_fields(text: str) -> dict[str, Any]:
    """Argument type: a JSON object of request fields. Fields that other options set are refused."""
    value = json_object(text)
    if own := ", ".join(sorted(value.keys() & _OWN_FIELDS.split())):
        raise argparse.ArgumentTypeError(f"{own}: set by this command and its other options")
    return value


def add_template_kwargs(option: Callable[..., None]) -> None:
    """Adds ``--chat-template-kwargs``, the ``data.chat_template_kwargs`` of the tools."""
    what = "switches of the chat template, as data.chat_template_kwargs of the run: '{\"enable_thinking\": false}'"
    option(f"{TEMPLATE_KWARGS} JSON", what, type=json_object)


def add_literal(option: Callable[..., None]) -> None:
    """Adds ``--literal``."""
    what = "count an answer anywhere in the stated text, also inside a word or number, as published sub-EM figures do"
    option("--literal", what)


def add_server(option: Callable[..., None]) -> None:
    """Adds the options of a server: ``--serve``, ``--extra-body`` and ``--patience``."""
    what = "start this server first, stop it at the end; in place of --base-url: 'vllm serve {model} --port {port}'"
    option("--serve COMMAND", what)
    fields = "more fields of each request, such as '{\"min_p\": 0.05}'"
    option("--extra-body JSON", fields, type=extra_fields)
    option("--patience S", "seconds to wait for a server that starts, is away or busy", 600.0)


def settings_of(arguments: argparse.Namespace, kind: type[T]) -> T:
    """Creates a dataclass from the arguments with the names of its fields. None keeps the default of the field."""
    given = {field.name: getattr(arguments, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if value is not None})


def show_json(arguments: argparse.Namespace, summary: Any) -> None:
    """Prints a summary as one line of JSON if ``--json`` was given."""
    if arguments.json:
        print(json.dumps(summary))


def positive_number(text: str) -> float:
    """Argument type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def positive_count(text: str) -> int:
    """Argument type: a whole number of at least 1, also as 8K or 1M."""
    value = token_count(text)
    if value < 1:
        raise ValueError
    return value


def path_or_name(text: str) -> str:
    """Argument type: a path or a name. ``~`` is the home folder, as it is for an argument of type ``Path``."""
    return expand_home(text)


def _path(text: str) -> Path:
    return Path(expand_home(text))


def list_of(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Argument type: comma-separated values of another argument type."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(one(part.strip()) for part in text.split(","))

    parse.__name__ = "comma-separated list"
    return parse


# argparse prints these names in its messages
positive_number.__name__, positive_count.__name__ = "positive number", "positive whole number"
token_count.__name__ = "number of tokens, such as 8192 or 8K"
json_object.__name__ = extra_fields.__name__ = "JSON object"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits with the code that it returns (None is 0).

    - A ``UserError`` or a module that is not installed prints one line on stderr; the exit code is 2.
    - A ``RunFault`` prints one line on stderr; the exit code is 1.
    - Ctrl-C or :class:`~solopo_nemo.runtime.signals.Stopped` prints one line on stderr; the exit code is 75.
    - Any other exception is a crash with a traceback.
    """
    try:
        try:
            provide_home()
            code = main()
        except ModuleNotFoundError as error:
            raise UserError(_not_installed(error)) from error
    except (UserError, RunFault) as error:
        # the message of a library may have several lines
        print("error:", masked_command(" ".join(str(error).split())), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        code = EXIT_RESUMABLE
    if code == EXIT_RESUMABLE:
        # a second signal must not change the exit code, which says that the command can be resumed
        atexit.register(ignore_signals)
    sys.exit(code or 0)


def _not_installed(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package == "solopo_nemo":
        raise error  # a missing module of this package is a defect, which shows its traceback
    if package == "studies":
        return f"studies are not installed in {sys.executable}: run pip install -e studies in a checkout of solopo_nemo"
    return (
        f"{package or error} is not installed in {sys.executable}: run tools/setup.sh and use .venv/bin/python, or "
        "pip install 'solopo-nemo[cpu]'"
    )
