"""How every command of the project ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from solopo_nemo import environment  # noqa: F401  first of all, as it silences a warning of torch's import
from solopo_nemo.errors import UserError

EXIT_USER_ERROR = 2


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code (None counts as 0).

    A `UserError` becomes one line on stderr and exit code 2; everything else is a crash with its traceback.
    """
    try:
        code = main()
    except UserError as error:
        # one line, whatever a library put into the message
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(code or 0)
