"""Preference pairs of the synthetic data, sampled from the starting model with `solopo_nemo.builders.pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.runtime.output import atomic_text, write_json_line
from studies.reproduction.ground import MINIATURE, Ground
from studies.reproduction.start import Start
from studies.reproduction.world import LONG


@dataclass(frozen=True)
class PairPlan:
    """Settings of a file of pairs.

    Attributes:
        side: prompt for sampling, ``short`` or ``long``.
        seed: seed of contexts and samples.
        size: number of pairs.
        questions: maximum number of sampled questions.
        samples: answers per question.
        temperature: sampling temperature.
        long: length of the long context as a multiple of the short one.
    """

    side: str
    seed: int
    size: int = 800
    questions: int = 10_000
    samples: int = 16
    temperature: float = 1.0
    long: int = LONG

    @property
    def name(self) -> str:
        """Stem of its file."""
        return f"{self.side}-{self.long}x-{self.size}-{self.seed}"

    def path(self, folder: Path) -> Path:
        """Path of its file in a folder of pairs."""
        return folder / f"{self.name}.jsonl"


def make_pairs(plan: PairPlan, start: Start, folder: Path, ground: Ground = MINIATURE) -> Path:
    """Sample pairs. A second call resumes an interrupted one.

    Args:
        plan: settings of the pairs.
        start: starting model.
        folder: output folder.
        ground: the contexts.

    Returns:
        The file of triplets.
    """
    from solopo_nemo.builders.pairs.hf import HuggingFaceBackend

    folder.mkdir(parents=True, exist_ok=True)
    out = plan.path(folder)
    if out.is_file():
        return out
    contexts = folder / f"contexts-{plan.long}x-{plan.questions}-{plan.seed}.jsonl"
    if not contexts.is_file():
        with atomic_text(contexts) as stream:
            for row in ground.contexts(plan.questions, plan.seed, plan.long):
                write_json_line(stream, row)
    sampling = Sampling(
        backend="hf",
        model=str(start.hf),
        samples=plan.samples,
        temperature=plan.temperature,
        max_new_tokens=ground.new_tokens,
        seed=plan.seed,
    )
    summary: dict[str, Any] = sample_pairs(
        PairSettings(contexts, out, on=plan.side, size=plan.size), sampling, HuggingFaceBackend
    )
    with atomic_text(out.with_suffix(".summary.json")) as stream:
        write_json_line(stream, summary)
    return out
