"""How every command of the project ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from solopo_nemo.errors import RunFault, UserError

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose complaint is one line like any other about bad input; use it under :func:`run`."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UserError(f"{message} ({self.prog} --help lists the arguments)")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code (None counts as 0).

    A `UserError` becomes one line on stderr and exit code 2, a `RunFault` one line and exit code 1; everything else is
    a crash with its traceback.
    """
    try:
        code = main()
    except (UserError, RunFault) as error:
        # one line, whatever a library put into the message
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT)
    sys.exit(code or 0)
