"""The performance goals, and their evaluation from the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.benchmarks.results import Collected, Spread, peak_gib, ratio, step_seconds
from studies.benchmarks.spec import StepSpec
from studies.results import Run, read_yaml

K = 1024


Measure = Callable[[Collected], Spread | None]
"""Computes a value with its spread from the results; None if it has not been measured."""


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals.

    Attributes:
        name: key in the file of reasons.
        title: name of the measured value.
        measure: see :data:`Measure`.
        sources: names of the result files that it uses.
        at_least: lower bound of the median.
        at_most: upper bound of the median.
        unit: unit of value and bound.
    """

    name: str
    title: str
    measure: Measure
    sources: tuple[str, ...]
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = ""

    @property
    def bound(self) -> str:
        """The bound as text."""
        if math.isfinite(self.at_least):
            return f"at least {self.at_least:.2f}{self.unit}"
        return f"at most {self.at_most:.2f}{self.unit}" if math.isfinite(self.at_most) else "recorded"

    def met(self, value: Spread) -> bool:
        """True if the median is within the bounds."""
        return self.at_least <= value.median <= self.at_most


def _steps(above: str, below: str, long: int, source: str) -> Measure:
    def measure(results: Collected) -> Spread | None:
        first, second = (results.select(source, system=system, long=long) for system in (above, below))
        return ratio(first, second, step_seconds)

    return measure


def _lora_steps(long: int) -> Measure:
    """Step time of SoLo-DPO with LoRA over the faster of TRL's two ways to score the reference policy."""

    def measure(results: Collected) -> Spread | None:
        own, scored, off = (
            results.select("lora", system=system, long=long)
            for system in ("solo_dpo+lora", "trl_best+lora", "trl_best+lora_off")
        )
        found = ratio(own, scored, step_seconds), ratio(own, off, step_seconds)
        return max((spread for spread in found if spread), key=lambda spread: spread.median, default=None)

    return measure


def _speed_up(long: int) -> Measure:
    """Measured speed-up of SoLo-DPO over Long-DPO, divided by the speed-up from the FLOP counts."""

    def measure(results: Collected) -> Spread | None:
        solo, vanilla = (results.select("speed", system=system, long=long) for system in ("solo_dpo", "long_po"))
        measured = ratio(vanilla, solo, step_seconds)
        if measured is None:
            return None
        return measured.over(modelled_flops(vanilla[0]) / modelled_flops(solo[0]))

    return measure


def modelled_flops(run: Run) -> float:
    """FLOPs of a step by the cost model of ``solopo_nemo.planning``."""
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.planning import Lengths, ModelShape, Workload, model_flops

    spec = StepSpec.from_json(run["spec"])
    objective = load_config(spec.recipe, list(spec.overrides)).build_objective()
    workload = Workload.of(objective, Lengths(spec.long, spec.short, spec.response))
    return model_flops(ModelShape.from_hf(spec.shape.hf_config()), workload.policy).total


def slope(results: Collected, system: str, source: str, low: int, high: int) -> dict[int, float]:
    """Round -> GiB per 1,024 additional long tokens between two lengths."""
    at: list[dict[int, float]] = []
    for long in (low, high):
        runs = results.select(source, system=system, long=long)
        at.append({run["round"]: peak_gib(run) for run in runs})
    shared = sorted(at[0].keys() & at[1].keys())
    return {number: (at[1][number] - at[0][number]) / (high - low) * K for number in shared}


def _slopes(source: str, above: str, below: str) -> Measure:
    def measure(results: Collected) -> Spread | None:
        own, peer = (slope(results, system, source, 8 * K, 32 * K) for system in (above, below))
        shared = sorted(own.keys() & peer.keys())
        return Spread.of(own[n] / peer[n] for n in shared) if shared else None

    return measure


def _peaks(above: str, below: str, long: int, source: str) -> Measure:
    def measure(results: Collected) -> Spread | None:
        first, second = (results.select(source, system=system, long=long) for system in (above, below))
        return ratio(first, second, peak_gib)

    return measure


def _longest(above: tuple[str, str, int], below: tuple[str, str, int]) -> Measure:
    """Ratio of the longest prompts of two (source, system, context size), with the spread of the two brackets.

    The ratio is a lower bound if no longer prompt of the first was tried.
    """

    def measure(results: Collected) -> Spread | None:
        this, other = (results.bracket(source, system=system, context=cp) for source, system, cp in (above, below))
        if this is None or other is None:
            return None
        (fits, exceeds), (other_fits, other_exceeds) = this, other
        if other_exceeds is None:
            return None
        return Spread(fits / other_fits, fits / other_exceeds, (exceeds or fits) / other_fits, 1)

    return measure


def _head(results: Collected) -> Spread | None:
    """Growth of the head's memory from the shortest to the longest prompt, in percent."""
    runs = results.select("head", head="response_only")
    peaks = [Spread.of(peak_gib(r) for r in runs if r["spec"]["long"] == n).median for n in _lengths(runs)]
    return Spread.of([100 * (max(peaks) / min(peaks) - 1)]) if len(peaks) > 1 else None


def _lengths(runs: list[Run]) -> list[int]:
    return sorted({run["spec"]["long"] for run in runs})


def _ranks(value: Callable[[Run], float], source: str, long: int, context: int) -> Measure:
    def measure(results: Collected) -> Spread | None:
        common: dict[str, Any] = {"system": "solo_dpo", "long": long, "tensor": 1}
        several, one = (results.select(source, context=size, **common) for size in (context, 1))
        return ratio(several, one, value)

    return measure


def _exponent(results: Collected) -> Spread | None:
    """The exponent p of ``peak = a + b * length^p``, from the peaks at 16K, 32K, 64K and 128K; independent of a."""
    by_length = [
        {run["round"]: peak_gib(run) for run in results.select("growth", system="solo_dpo", long=long * K)}
        for long in (16, 32, 64, 128)
    ]
    shared = set.intersection(*(set(peaks) for peaks in by_length))
    values = []
    for number in sorted(shared):
        p16, p32, p64, p128 = (peaks[number] for peaks in by_length)
        values.append(math.log2((p128 - p32) / (p64 - p16)))
    return Spread.of(values) if values else None


def _planner(results: Collected) -> Spread | None:
    """Largest relative error of the predicted peak in percent, over all runs with a prediction."""
    runs = [run for run in results.select("planner") if "predicted_bytes" in run]
    errors = [100 * abs(run["predicted_bytes"] / max(run["peak_bytes"]) - 1) for run in runs]
    return Spread.of([max(errors)]) if errors else None


def _packed(results: Collected) -> Spread | None:
    """Time of a step on the packed triplet, divided by the time of separate steps on its parts, each with an update."""
    packed, short, long = (
        {run["round"]: step_seconds(run) for run in results.select("parts", system=system)}
        for system in ("solo_dpo", "solo_dpo+pair", "sft")
    )
    shared = sorted(packed.keys() & short.keys() & long.keys())
    return Spread.of(packed[n] / (short[n] + long[n]) for n in shared) if shared else None


def _slowest_help(results: Collected) -> Spread | None:
    found = results.spreads("startup", step_seconds, by="command", first_step=False)
    return max(found.values(), key=lambda spread: spread.median, default=None)


def _first_step(results: Collected) -> Spread | None:
    return results.spread("startup", step_seconds, first_step=True)


def _whole_step(results: Collected) -> Spread | None:
    return results.spread("longest_step", lambda run: run["seconds"][-1], system="solo_dpo", long=256 * K)


MEASURES: dict[str, Measure] = {
    "solo_best_8k": _steps("solo_dpo", "trl_best", 8 * K, "speed"),
    "solo_best_32k": _steps("solo_dpo", "trl_best", 32 * K, "speed"),
    "solo_as_is_4k": _steps("solo_dpo", "trl_as_is", 4 * K, "as_is"),
    "vanilla_best_8k": _steps("long_po", "trl_best", 8 * K, "speed"),
    "vanilla_best_32k": _steps("long_po", "trl_best", 32 * K, "speed"),
    "speed_up_8k": _speed_up(8 * K),
    "speed_up_32k": _speed_up(32 * K),
    "slope": _slopes("speed", "solo_dpo", "trl_best"),
    "lora_best_8k": _lora_steps(8 * K),
    "lora_best_32k": _lora_steps(32 * K),
    "lora_slope": _slopes("lora", "solo_dpo+lora", "trl_best+lora"),
    "lora_time_8k": _steps("solo_dpo+lora", "solo_dpo", 8 * K, "lora"),
    "lora_time_32k": _steps("solo_dpo+lora", "solo_dpo", 32 * K, "lora"),
    "lora_peak_8k": _peaks("solo_dpo+lora", "solo_dpo", 8 * K, "lora"),
    "lora_peak_32k": _peaks("solo_dpo+lora", "solo_dpo", 32 * K, "lora"),
    "lora_off_32k": _steps("solo_dpo+lora_off", "solo_dpo+lora", 32 * K, "lora"),
    "longest": _longest(("memory", "solo_dpo", 1), ("memory", "trl_best", 1)),
    "longest_recompute": _longest(("memory_recompute", "solo_dpo", 1), ("memory_recompute", "trl_best", 1)),
    "longest_cp4": _longest(("memory_cp4", "solo_dpo", 4), ("memory", "solo_dpo", 1)),
    "head": _head,
    "cp2_memory": _ranks(peak_gib, "scaling_memory", 64 * K, 2),
    "cp4_memory": _ranks(peak_gib, "scaling_memory", 64 * K, 4),
    "exponent": _exponent,
    "longest_step": _whole_step,
    "packed": _packed,
    "planner": _planner,
    "cp2_time": _ranks(step_seconds, "scaling_time", 32 * K, 2),
    "help": _slowest_help,
    "first_step": _first_step,
}
GOALS = tuple(
    Goal(name, goal.pop("title"), MEASURES[name], tuple(goal.pop("from")), **goal)
    for name, goal in read_yaml(Path(__file__).with_suffix(".yaml")).items()
)
