"""Everything that memory and time of a run depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Lengths, Workload
from solopo_nemo.runtime.device import default_precision

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

GPU, CPU = "gpu", "cpu"
ITEMSIZE = {"bf16": 2, "fp32": 4}
OPTIMIZERS = ("sharded", "replicated", "offloaded")


@dataclass(frozen=True)
class Run:
    """A training run as the planner sees it.

    Attributes:
        shape: of the model.
        workload: the sequences of one sample.
        layout: parallel sizes.
        device: ``gpu`` (Transformer Engine) or ``cpu`` (this project's layers).
        precision: ``bf16`` or ``fp32``.
        recompute: ``none``, ``selective`` or ``full``.
        logits_chunk_size: response positions that the head scores at a time.
        micro_batch, global_batch: samples a forward pass and rank, and an optimizer step.
        online_reference: whether the frozen reference policy stands beside the policy.
        optimizer: ``sharded`` (over data- and context-parallel ranks, as the recipes do it), ``replicated``, or
            ``offloaded`` (sharded, and kept in host memory).
    """

    shape: ModelShape
    workload: Workload
    layout: Layout = field(default_factory=Layout)
    device: str = GPU
    precision: str = "bf16"
    recompute: str = "none"
    logits_chunk_size: int = 512
    micro_batch: int = 1
    global_batch: int = 64
    online_reference: bool = False
    optimizer: str = "sharded"

    @classmethod
    def of(
        cls,
        config: RunConfig,
        shape: ModelShape,
        lengths: Lengths,
        world: int,
        device: str = GPU,
        optimizer: str = "sharded",
    ) -> Run:
        """The run of a recipe's configuration.

        Args:
            config: of the recipe.
            shape: of its model.
            lengths: of a typical sample.
            world: ranks.
            device: ``gpu`` or ``cpu``; decides the precision that the configuration leaves open.
            optimizer: see the class.
        """
        objective = config.build_objective()
        return cls(
            shape=shape,
            workload=Workload.of(objective, lengths),
            layout=Layout.of(config.parallel, world),
            device=device,
            precision=config.trainer.precision or default_precision(device == GPU),
            recompute=config.model.recompute,
            logits_chunk_size=config.model.logits_chunk_size,
            micro_batch=config.trainer.micro_batch,
            global_batch=config.trainer.global_batch,
            online_reference=config.reference == "online" and bool(objective.reference_sequences),
            optimizer=optimizer,
        )

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter and of an activation."""
        return ITEMSIZE[self.precision]

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a data-parallel rank runs in one optimizer step."""
        return max(self.global_batch // (self.micro_batch * self.layout.data), 1)
