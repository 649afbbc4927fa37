"""Registry of the evaluation suites."""

from __future__ import annotations

from solopo_nemo.evaluation.suites import builtin, longbench_qa, longbench_v2, niah_plus, open_llm, ruler_qa
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.runtime.errors import UserError, require

SUITES = {
    suite.name: suite
    for suite in (
        ruler_qa.SUITE,
        longbench_qa.SUITE,
        longbench_v2.SUITE,
        niah_plus.SUITE,
        open_llm.SUITE,
        builtin.SUITE,
    )
}


def find_suites(names: str, option: str = "--suite") -> list[Suite]:
    """Look up suites by name.

    Args:
        names: comma-separated names, such as ``ruler_qa,builtin``.
        option: name of the command-line option, for error messages.

    Raises:
        UserError: a name is unknown or repeated.
    """
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise UserError(f"{option} {names}: no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    require(len(set(wanted)) == len(wanted), f"{option} {names}: names a suite twice")
    return [SUITES[name] for name in wanted]
