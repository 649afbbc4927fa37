"""Peak memory of a training step on the rank with the highest peak, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.state import GIB, Tensor, device_share, stage_parameters, training_state, weights
from solopo_nemo.planning.traced import Kind, Sizes, traced_step
from solopo_nemo.runtime.kernels import ENGINE


@dataclass(frozen=True)
class Memory:
    """Peak memory of one rank.

    Attributes:
        peak: peak in bytes, including the loaded model and what the device's libraries take.
        above_model: peak in bytes above the loaded model, as the benchmarks measure it. It includes gradients and
            optimizer state, but not weights; of the libraries' memory only what a CPU's take during training.
        stage: pipeline stage with the highest peak.
        moment: name of what runs at the peak.
        parts: name -> bytes of what is alive at the peak, largest first.
        formulas: name -> formula of each part.
    """

    peak: float
    above_model: float
    stage: int
    moment: str
    parts: dict[str, float]
    formulas: dict[str, str]

    @property
    def gib(self) -> float:
        """The peak in GiB."""
        return self.peak / GIB

    def as_json(self) -> dict[str, Any]:
        """The values as plain JSON data, in GiB."""
        parts = [
            {"name": name, "gib": round(size / GIB, 4), "formula": self.formulas[name]}
            for name, size in self.parts.items()
        ]
        peak, above = round(self.gib, 3), round(self.above_model / GIB, 3)
        return {"peak_gib": peak, "above_model_gib": above, "stage": self.stage, "moment": self.moment, "parts": parts}


def memory(run: Run) -> Memory:
    """The peak over the first and last pipeline stage, in a step after the first (optimizer state is allocated)."""
    stages = {0, run.layout.pipeline - 1}
    return max((_stage(run, stage) for stage in sorted(stages)), key=lambda found: found.peak)


def _stage(run: Run, stage: int) -> Memory:
    sizes = Sizes(run)
    last = run.layout.pipeline - 1
    without = ("embedding",) * (stage > 0 or run.adapter_rank is not None) + ("head",) * (stage < last)
    moment, formulas = traced_step(Kind.of(run)).highest(sizes, without)
    step = [Tensor(part, sizes(formula), formula.text(sizes)) for part, formula in formulas.items()]
    step += [_waiting(run, stage, sizes), _placeholder(run)]
    model, device = weights(run, stage), device_share(run, stage)
    parts = [part for part in (model, *training_state(run, stage), *device, *step) if part.bytes]
    peak = sum(part.bytes for part in parts)
    return Memory(
        peak=peak,
        above_model=peak - model.bytes - sum(part.bytes for part in device if part.loaded),
        stage=stage,
        moment=moment,
        parts={part.name: part.bytes for part in sorted(parts, key=lambda part: -part.bytes)},
        formulas={part.name: part.formula for part in parts},
    )


def _waiting(run: Run, stage: int, sizes: Sizes) -> Tensor:
    """What the other micro-batches in flight hold on a pipeline stage, in Megatron's 1F1B schedule."""
    traced, pipeline = traced_step(Kind.of(run)), run.layout.pipeline
    queued, layers = min(pipeline - stage, run.micro_batches) - 1, run.shape.num_hidden_layers // pipeline
    size = queued * (layers * sizes(traced.saved) + sizes(traced.outside))
    formula = f"{queued} x ({layers} x ({traced.saved.text(sizes)}) + {traced.outside.text(sizes)})"
    return Tensor("other micro-batches in flight", size, formula)


def _placeholder(run: Run) -> Tensor:
    """What autograd holds for the gradient of a tied head until that of the embedding joins it, on one stage of a GPU.

    The gradient itself is in Megatron's buffer. The traced models have a head of their own, whose placeholder goes at
    once. Transformer Engine keeps that of any head (:func:`solopo_nemo.planning.state.device_share`).
    """
    tied = run.device == GPU and run.shape.tie_word_embeddings and run.layout.pipeline == 1
    there = tied and run.layers != ENGINE and run.adapter_rank is None
    size = stage_parameters(run, 0).embedding * run.itemsize if there else 0
    return Tensor("placeholder of the tied head's gradient", size, "v * h / t * e")
