"""The commands. ``solopo NAME``, ``python recipes/NAME.py`` and ``python tools/NAME.py`` all call :func:`main`.

This file must be valid in Python 3.6, so that an old Python prints an error message instead of a syntax error.
"""

import sys
from importlib import import_module


def main(command: str = "") -> None:
    """Run a command with the arguments of this process, and exit with its code.

    Args:
        command: name of a recipe or tool, or full name of a module with a function ``main(arguments)``. By default, the
            first argument is the name of the recipe or tool.
    """
    if sys.version_info < (3, 10):
        sys.stderr.write(
            f"error: Python {sys.version_info[0]}.{sys.version_info[1]} in {sys.executable} is too old, this project "
            "needs 3.10 to 3.12: run PYTHON=python3.11 tools/setup.sh and use .venv/bin/python\n"
        )
        sys.exit(2)
    from solopo_nemo.runtime import cli

    def run():  # type: ignore[no-untyped-def]
        if "." in command:
            return import_module(command).main(sys.argv[1:])
        from solopo_nemo.commands.dispatch import dispatch

        return dispatch([command, *sys.argv[1:]] if command else sys.argv[1:])

    cli.run(run)
