"""How every command of the project ends."""

from __future__ import annotations

import argparse
import atexit
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.signals import ignore_signals
from solopo_nemo.runtime.units import token_count

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75
STOPPED = "stopped: the same command goes on from here"


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose complaint is one line like any other about bad input; use it under :func:`run`."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UserError(f"{message} ({self.prog} --help lists the arguments)")


def positive_number(text: str) -> float:
    """Argument type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def positive_count(text: str) -> int:
    """Argument type: a whole number from 1; 8K and 1M too."""
    value = token_count(text)
    if value < 1:
        raise ValueError
    return value


# argparse puts the names into its messages
positive_number.__name__, positive_count.__name__ = "positive number", "positive whole number"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code (None counts as 0).

    A `UserError` becomes one line on stderr and exit code 2, a `RunFault` one line and exit code 1, a stop on request
    (Ctrl-C, or :class:`~solopo_nemo.runtime.signals.Stopped`) one line and exit code 75; everything else is a crash
    with its traceback.
    """
    try:
        code = main()
    except (UserError, RunFault) as error:
        # one line, whatever a library put into the message
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        code = EXIT_RESUMABLE
    if code == EXIT_RESUMABLE:
        # whoever asked to stop may ask again: the exit code must still say that the run goes on
        atexit.register(ignore_signals)
    sys.exit(code or 0)
