"""The planner's description of a run: all values that determine its memory and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.parameters import fused_adapter_weights
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.workload import Lengths, Workload
from solopo_nemo.runtime.device import default_precision
from solopo_nemo.runtime.kernels import ENGINE

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

GPU, CPU = "gpu", "cpu"
ITEMSIZE = {"bf16": 2, "fp32": 4}
OPTIMIZERS = ("sharded", "replicated", "offloaded")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        shape: shape of the model.
        workload: sequences of one sample.
        layout: parallel layout.
        device: ``gpu`` or ``cpu``, which has torch's layers alone.
        precision: ``bf16`` or ``fp32``.
        recompute: ``none``, ``selective`` or ``full``.
        logits_chunk_size: response positions in a chunk of the head.
        micro_batch: samples in a forward pass of a data-parallel rank.
        global_batch: samples in an optimizer step.
        online_reference: True if the frozen reference policy runs in every step; a copy in memory, unless the policy
            has adapters.
        layers: ``transformer_engine`` or ``torch``.
        optimizer: ``sharded`` (over data- and context-parallel ranks, as in the recipes), ``replicated``, or
            ``offloaded`` (sharded, in host memory).
        adapter_rank: of LoRA's adapters, which alone are trained; None if all weights are trained.
        adapter_targets: modules that have an adapter.
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
    layers: str = ENGINE
    optimizer: str = "sharded"
    adapter_rank: int | None = None
    adapter_targets: tuple[str, ...] = ()

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
            config: configuration of the recipe.
            shape: shape of its model.
            lengths: lengths of a typical sample.
            world: number of ranks.
            device: ``gpu`` or ``cpu``. It selects the default precision.
            optimizer: see the class.

        Raises:
            UserError: no layers run it.
        """
        from solopo_nemo.config.world import layers_of

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
            online_reference=config.reference != "cached" and bool(objective.reference_sequences),
            layers=layers_of(config, shape, device == GPU).name,
            optimizer=optimizer,
            adapter_rank=config.peft.rank if config.peft.on else None,
            adapter_targets=config.peft.modules if config.peft.on else (),
        )

    @property
    def adapter_weights(self) -> int | None:
        """Elements that the adapters of one layer multiply with each token; None if all weights are trained."""
        if self.adapter_rank is None:
            return None
        return fused_adapter_weights(self.shape, self.adapter_rank, self.adapter_targets)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter or activation element."""
        return ITEMSIZE[self.precision]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a data-parallel rank in one optimizer step."""
        return max(self.global_batch // (self.micro_batch * self.layout.data), 1)
