"""Made-up results: the files that measurements would leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.benchmarks.head import HEADS, HeadSpec
from studies.benchmarks.session import Session
from studies.benchmarks.spec import GIB, Spec, StepSpec
from studies.results import Results

K = 1024
MACHINE = {"processor": "a processor", "cores": 2, "memory_gib": 24.0}
SECONDS = {"solo_dpo": 1.0, "long_po": 1.9, "trl_best": 2.0, "trl_as_is": 40.0}
GIB_AT_NOTHING = {"solo_dpo": 0.7, "long_po": 0.7, "trl_best": 0.7, "trl_as_is": 4.0}
GIB_A_TOKEN = {"solo_dpo": 0.2 / 8192, "long_po": 0.4 / 8192, "trl_best": 0.4 / 8192, "trl_as_is": 0.4 / 8192}

Measured = dict[str, Any]


def step_run(spec: StepSpec, number: int = 0) -> Measured:
    """What a measurement of a step would give: half as much again in each round's seconds."""
    seconds = SECONDS[spec.system] * spec.long / 8192 / spec.context * (1 + number / 2)
    peak = (GIB_AT_NOTHING[spec.system] + GIB_A_TOKEN[spec.system] * spec.long) / spec.context
    return {
        "spec": spec.as_json(),
        "seconds": [3 * seconds, *[seconds] * (spec.steps - 1)],
        "peak_bytes": [int(peak * GIB)] * spec.context,
        "losses": [0.6931, 0.5],
        "logps": [{"logps/chosen": -1527.0, "logps/rejected": -1528.0}],
        "digest": {"prompt_long": "p", "chosen": "c", "rejected": "r"},
        "machine": MACHINE,
        "versions": {"torch": "1", "trl": "1.16.0"} if spec.system.startswith("trl") else {"torch": "1"},
    }


def head_run(spec: HeadSpec) -> Measured:
    rows = spec.response if spec.head == "response_only" else spec.long
    peak = {"seconds": [0.1, 0.1], "peak_bytes": [rows * spec.vocabulary * 4]}
    return {"spec": spec.as_json(), "machine": MACHINE, "versions": {"torch": "1"}} | (
        {"skipped": "too large"} if spec.head == "full" and spec.long > 8 * K else peak
    )


class Folder:
    """A folder of results under way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _add(self, name: str, benchmark: str, spec: Spec, number: int, measured: Measured) -> None:
        results = Results.open(self.path / f"{name}.json", benchmark=benchmark)
        Session(results, f"python tools/benchmark.py {name}", lambda spec: measured).run(spec, number)

    def steps(self, name: str, specs: list[StepSpec], rounds: int = 1, **change: Any) -> None:
        for number in range(rounds):
            for spec in specs:
                self._add(name, "step", spec, number, step_run(spec, number) | change)

    def heads(self) -> None:
        for long in (4 * K, 64 * K):
            for head in HEADS:
                spec = HeadSpec(head, long)
                self._add("head", "head", spec, 0, head_run(spec))
