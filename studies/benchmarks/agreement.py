"""Check that two systems compute the same: token ids, scores and losses of the same sample and weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

from solopo_nemo.runtime.errors import RunFault
from studies.benchmarks.spec import PEERS
from studies.results import Run

CONTROL = "long_po"
"""The recipe with the peer's objective, DPO on the long prompt."""
TOLERANCE = 1e-4
SHARED = ("logps/chosen", "logps/rejected")


class Disagreement(RunFault):
    """Two systems that should compute the same do not."""


def check_agreement(runs: Iterable[Run]) -> float:
    """Compare every run of a peer with this project's vanilla run on the same weights and token ids.

    Token ids must be equal. At the first step, the absolute difference of the loss and the relative difference of the
    summed log-probabilities must be at most 1e-4. The log-probabilities matter most, because the loss of the first step
    is always ln 2. Runs with overrides are skipped. A peer with adapters is compared with the same run.

    Returns:
        The largest difference; NaN if there is nothing to compare.

    Raises:
        Disagreement: two runs differ. The message names the runs and the difference.
    """
    own: dict[tuple[str, ...], Run] = {}
    peers: list[tuple[tuple[str, ...], Run]] = []
    for run in runs:
        system = run["spec"]["system"]  # adapters change nothing at the first step: B is zero
        if run["spec"]["overrides"]:
            continue
        if system == CONTROL:
            own[_subject(run)] = run
        elif system in PEERS:
            peers.append((_subject(run), run))
    worst = math.nan
    for subject, peer in peers:
        if subject in own:
            found = _difference(own[subject], peer)
            worst = found if math.isnan(worst) else max(worst, found)
    return worst


def _subject(run: Run) -> tuple[str, ...]:
    spec = run["spec"]
    return tuple(str(spec[key]) for key in ("shape", "long", "response"))


def _difference(own: Run, peer: Run) -> float:
    where = f"{peer['spec']['system']} against {CONTROL} at {peer['spec']['long']:,} tokens"
    for field, ids in peer["digest"].items():
        if own["digest"][field] != ids:
            raise Disagreement(f"{where}: the token ids of {field} differ")
    differences = {"loss": abs(own["losses"][0] - peer["losses"][0])}
    for key in SHARED:
        expected = own["logps"][0][key]
        differences[key] = abs(peer["logps"][0][key] / expected - 1)
    name, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= TOLERANCE:
        raise Disagreement(f"{where}: {name} differs by {worst:.1e} at the first step, more than {TOLERANCE:g}")
    return worst
