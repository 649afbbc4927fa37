"""Predicted time of an optimizer step, for an assumed utilisation and assumed bandwidths."""

from __future__ import annotations

from dataclasses import dataclass, replace

from solopo_nemo.planning.communication import communication
from solopo_nemo.planning.flops import Flops, hardware_flops, model_flops
from solopo_nemo.planning.layout import Share
from solopo_nemo.planning.run import Run


@dataclass(frozen=True)
class Machine:
    """The machine of a plan. All numbers are assumptions, not measurements of this project.

    Attributes:
        gpus, gpus_per_node: devices in total and per node.
        memory_gib: memory of one device in GiB.
        usable: share of the memory that tensors can use; the rest is lost to fragmentation.
        tflops: bf16 peak of one device, 10^12 operations per second. 989: data sheet of H100 SXM, dense.
        mfu: share of the peak that a device reaches during computation, recomputation included. Communication and
            pipeline bubbles are added separately.
        node_gbs: send bandwidth of a device within its node, GB/s. 300: two thirds of NVLink 4's 450.
        network_gbs: send bandwidth of a device to other nodes, GB/s. 40: four fifths of a 400 Gbit/s adapter per GPU.
    """

    gpus: int = 8
    gpus_per_node: int = 8
    memory_gib: float = 80.0
    usable: float = 0.95
    tflops: float = 989.0
    mfu: float = 0.4
    node_gbs: float = 300.0
    network_gbs: float = 40.0

    @property
    def budget_gib(self) -> float:
        """Usable memory of one device in GiB: ``memory_gib * usable``."""
        return self.memory_gib * self.usable

    def bandwidth(self, ranks: int) -> float:
        """Bytes per second between neighbours in a group that spans ``ranks`` consecutive ranks."""
        return 1e9 * (self.node_gbs if ranks <= self.gpus_per_node else self.network_gbs)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: forward, backward and recomputation.
        exposed: communication that does not overlap with computation, by process group.
        bubble: idle time of the pipeline.
        utilisation: model FLOPs utilisation (MFU) of the whole step.
    """

    compute: float
    exposed: dict[str, float]
    bubble: float
    utilisation: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.compute + sum(self.exposed.values()) + self.bubble


def rank_flops(run: Run) -> Flops:
    """Operations in a step of the rank that computes most: of its context-parallel ranks that with most scored rows.

    PP: the mean over the stages.
    """
    of_sample = hardware_flops(run)
    rows = sum(sequence.rows for sequence in run.workload.policy)
    busiest = Share.of(run.workload.policy, 1, run.layout).rows * run.layout.context / rows
    samples = run.micro_batch * run.micro_batches / run.layout.model_ranks
    return replace(of_sample, head=of_sample.head * busiest) * samples


def step_time(run: Run, machine: Machine) -> StepTime:
    """Predict the time of an optimizer step.

    - TP, and CP with ``a2a``: communication does not overlap with computation.
    - EP: the exchange of tokens does not overlap, and every expert gets equally many.
    - CP with ``p2p``: the ring overlaps with attention.
    - DP: gradients and weights overlap with the backward pass of the last micro-batch.
    - PP: the exchange between stages overlaps with the next micro-batch; the bubble is added.

    Ranks are placed in Megatron's order, from the nearest to the farthest: tensor, context, data, pipeline.
    """
    layout, batches = run.layout, run.micro_batches
    rate = machine.tflops * 1e12 * machine.mfu
    operations = rank_flops(run)
    compute = operations.total / rate
    sent = communication(run)

    context = sent.context / machine.bandwidth(layout.tensor * layout.context)
    if layout.cp_comm_type == "p2p":
        context = max(0.0, context - operations.attention / rate)
    data = sent.data / machine.bandwidth(layout.tensor * layout.context * layout.data)
    last_backward = compute / batches * 2 / 3
    exposed = {
        "tensor": sent.tensor / machine.bandwidth(layout.tensor),
        "context": context,
    }
    if run.shape.experts:
        exposed["expert"] = sent.expert / machine.bandwidth(layout.expert_ranks)
    busy = compute + sum(exposed.values())
    bubble = busy / batches * (layout.pipeline - 1)
    exposed["data"] = max(0.0, data - last_backward)
    model = model_flops(run.shape, run.workload.policy, run.adapter_rank is not None).total * run.global_batch
    whole = busy + exposed["data"] + bubble
    utilisation = model / (whole * machine.tflops * 1e12 * layout.world)
    return StepTime(compute, exposed, bubble, utilisation)
