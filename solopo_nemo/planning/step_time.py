"""How long an optimizer step takes, at a stated utilisation and stated bandwidths."""

from __future__ import annotations

from dataclasses import dataclass

from solopo_nemo.planning.communication import communication
from solopo_nemo.planning.flops import hardware_flops, model_flops
from solopo_nemo.planning.run import GPU, Run


@dataclass(frozen=True)
class Machine:
    """The machine of a plan. Every number is a stated assumption, none is a measurement of this project.

    Attributes:
        gpus, gpus_per_node: devices, in all and on one node.
        memory_gib: of one device.
        usable: share of that memory that tensors can take; the rest is the allocator's fragmentation.
        tflops: peak of one device in bf16, 10^12 operations a second. 989: H100 SXM, dense, data sheet.
        mfu: share of the peak that a device reaches while it computes; communication and the pipeline's idle time are
            added to it, recomputation is computed at the same rate.
        node_gbs: GB a second that a device sends to others on its node. 300: two thirds of NVLink 4's 450.
        network_gbs: GB a second that it sends to other nodes. 40: four fifths of a 400 Gbit/s adapter each.
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
        """Memory that a plan may take."""
        return self.memory_gib * self.usable

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second between neighbours of a group that spans ``ranks`` consecutive ranks."""
        return 1e9 * (self.node_gbs if ranks <= self.gpus_per_node else self.network_gbs)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: forward, backward and what is computed again.
        exposed: communication by group that nothing hides.
        bubble: idle time of the pipeline.
        model_flops: of the whole step, over all devices.
        utilisation: model FLOPs over what the devices could do in the whole time: the run's own MFU.
    """

    compute: float
    exposed: dict[str, float]
    bubble: float
    model_flops: float
    utilisation: float

    @property
    def total(self) -> float:
        """Seconds."""
        return self.compute + sum(self.exposed.values()) + self.bubble


def step_time(run: Run, machine: Machine) -> StepTime:
    """Predict an optimizer step.

    Tensor-parallel traffic and the all-to-all of context parallelism stand in the way of computation; the ring
    (``p2p``) hides behind the attention that it feeds, gradients and weights behind the backward pass of the last
    micro-batch, the pipeline's exchange behind the next micro-batch. Ranks are placed as Megatron does it: tensor,
    context, data, pipeline, from the nearest to the farthest.
    """
    layout, batches = run.layout, run.micro_batches
    rate = machine.tflops * 1e12 * machine.mfu
    of_sample = hardware_flops(run.shape, run.workload, run.recompute, run.online_reference, run.device == GPU)
    of_rank = run.micro_batch * batches / layout.model_ranks
    compute = of_sample.total * of_rank / rate
    sent = communication(run)

    context = sent.context / machine.bandwidth(layout.tensor * layout.context)
    if layout.cp_comm_type == "p2p":
        context = max(0.0, context - of_sample.attention * of_rank / rate)
    data = sent.data / machine.bandwidth(layout.tensor * layout.context * layout.data)
    last_backward = compute / batches * 2 / 3
    exposed = {
        "tensor": sent.tensor / machine.bandwidth(layout.tensor),
        "context": context,
        "data": max(0.0, data - last_backward),
    }
    busy = compute + exposed["tensor"] + exposed["context"]
    bubble = busy / batches * (layout.pipeline - 1)
    model = model_flops(run.shape, run.workload.policy).total * run.global_batch
    whole = busy + exposed["data"] + bubble
    utilisation = model / (whole * machine.tflops * 1e12 * layout.world)
    return StepTime(compute, exposed, bubble, model, utilisation)
