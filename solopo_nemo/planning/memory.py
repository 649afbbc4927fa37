"""Peak memory of a training step on the rank with the highest peak, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from solopo_nemo.planning import cpu_layers, gpu_layers
from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.sizes import Sizes
from solopo_nemo.planning.state import device_share, training_state, weights
from solopo_nemo.planning.timeline import GIB, Step, Tensor, Timeline, kept


class Layers(Protocol):
    """The memory model of a device: :mod:`solopo_nemo.planning.gpu_layers` or ``cpu_layers``."""

    def inputs(self, z: Sizes) -> tuple[Tensor, ...]:
        """Tensors of a micro-batch outside the layers: token ids, rotary table."""

    def forward(self, z: Sizes, selective: bool) -> list[Step]:
        """Forward steps of one layer, from ``layer input`` to ``layer output``."""

    def backward(self, z: Sizes, selective: bool) -> list[Step]:
        """Backward steps of one layer, from ``gradient`` to ``gradient``."""

    def head(self, z: Sizes) -> list[Step]:
        """Steps of the final norm and the response head, from ``layer output`` to ``gradient``."""

    def embedding_backward(self, z: Sizes) -> list[Step]:
        """Steps at the end of backward on the first stage."""

    def optimizer(self, run: Run, stage: int) -> list[Step]:
        """Steps of the optimizer."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one rank.

    Attributes:
        peak: peak in bytes, including the loaded model, the CUDA context and communication buffers.
        above_model: peak in bytes above the loaded model, as the benchmarks measure it. It includes gradients and
            optimizer state, but not weights.
        stage: pipeline stage with the highest peak.
        moment: name of the step at the peak.
        parts: name -> bytes of the tensors alive at the peak, largest first.
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
    layers: Layers = gpu_layers if run.device == GPU else cpu_layers
    pipeline, share = run.layout.pipeline, Share.of(run.workload.policy, run.micro_batch, run.layout)
    z = Sizes.of(run.shape, run.layout, share, run.logits_chunk_size, run.itemsize)
    count = run.shape.num_hidden_layers // pipeline
    in_flight = min(pipeline - stage, run.micro_batches)  # 1F1B schedule
    selective, full = run.recompute == "selective", run.recompute == "full"

    forward = layers.forward(z, selective)
    (entry,) = z.tensors(layer_input=z.T * z.h / z.s * z.e)
    saved = [t for t in kept([Step("input", (entry,)), *forward]) if t.name != "layer output"]
    one_layer = entry.bytes if full else sum(tensor.bytes for tensor in saved)
    others = "P_layers - 1 layers, saved" if not full else "P_layers - 1 layer inputs"
    own = Tensor("other layers of the micro-batch", (count - 1) * one_layer, others)
    queued = in_flight - 1
    waiting = Tensor("other micro-batches in flight", queued * count * one_layer, f"{queued} x all layers")

    resident = (weights(run, stage), *training_state(run, stage), *device_share(run, stage))
    timeline = Timeline((*resident, *layers.inputs(z)))
    timeline.run([Step("forward of the other layers", (waiting, own, entry))])
    discarded = tuple(tensor.name for tensor in saved if tensor.name != "layer input")
    timeline.run([*forward, *([Step("layer checkpoint", drops=discarded)] if full else [])])
    if stage == pipeline - 1:
        timeline.run(layers.head(z))
    else:
        timeline.run(
            [Step("gradient of the next stage", z.tensors(gradient=z.T * z.h / z.s * z.e), drops=("layer output",))]
        )
    if full:
        timeline.run(layers.forward(z, False))
    timeline.run(layers.backward(z, selective))
    if full:  # Megatron's checkpoint frees the output after its own backward (tensor_parallel/random.py)
        timeline.run([Step("layer checkpoint backward", drops=("layer output",))])
    timeline.run([Step("backward of the other layers", drops=(own.name,))])
    if stage == 0 and run.adapter_rank is None:
        timeline.run(layers.embedding_backward(z))
    timeline.run([Step("end of backward", drops=("gradient", waiting.name)), *layers.optimizer(run, stage)])

    parts = sorted(timeline.at_peak, key=lambda tensor: -tensor.bytes)
    return Memory(
        peak=timeline.peak,
        above_model=timeline.peak - resident[0].bytes - sum(t.bytes for t in device_share(run, stage)),
        stage=stage,
        moment=timeline.moment,
        parts={tensor.name: tensor.bytes for tensor in parts if tensor.bytes},
        formulas={tensor.name: tensor.formula for tensor in parts if tensor.bytes},
    )
