"""One rank of a run, traced: the run's own model, wrapper, optimizer and schedule on fake tensors in a fake group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from nemo.lightning._strategy_lib import set_model_parallel_attributes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.variable import Variable
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.core.device import fuse_adamw
from solopo_nemo.core.reference import CachedReference, OnlineReference
from solopo_nemo.core.step import Batch, ForwardStep
from solopo_nemo.data.packing import pack
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.nemo_model import compat
from solopo_nemo.nemo_model.policy import build_model, ddp_config, optimizer_config, packing_layout, parallel_sizes
from solopo_nemo.planning.dry_run import engine
from solopo_nemo.planning.dry_run.balanced import balance, forget
from solopo_nemo.planning.dry_run.tracker import Peak, Tracker
from solopo_nemo.runtime import device
from solopo_nemo.runtime.kernels import TORCH

SAMPLE = "longest"
"""Id of the sample that a trace runs."""


@dataclass(frozen=True)
class RankTrace:
    """What one rank does in an optimizer step.

    Attributes:
        rank, stage: of the run; its pipeline stage.
        peak: the moment with the most memory.
        flops: operations of the step.
        sent: bytes that it sends in the step, by process group.
        too_long: float tensors as long as a whole sequence, of which a ring of context-parallel ranks has none.
        operations: how often each operation ran, by name.
    """

    rank: int
    stage: int
    peak: Peak
    flops: float
    sent: dict[str, float]
    too_long: list[str]
    operations: dict[str, int]


class _SameShapes(P2PCommunicator):
    """Megatron's, which asks no neighbour for shapes: every micro-batch of a trace is the same."""

    shape: tuple[int, int, int]

    def _communicate_shapes(self, *_: Any, **__: Any) -> Any:
        return self.shape, self.shape


class _FusedNorm(torch.autograd.Function):
    """What CUDA's kernels of RMSNorm allocate and save; on the CPU, where fake tensors lie, torch has none."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, rows.new_empty(rows.shape[:-1], dtype=torch.float32))
        return torch.empty_like(rows)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weight, _ = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight)


class _KernelsOfCuda(TorchFunctionMode):
    """Takes CUDA's kernel where torch chooses one by the device of a tensor (layer_norm.cpp, rms_norm)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.rms_norm:
            return _FusedNorm.apply(args[0], args[2] if len(args) > 2 else kwargs["weight"])
        if func is torch.autograd.backward:  # of recomputation: torch switches the mode off for all that it calls
            tensors, gradients = (*args, kwargs.get("grad_tensors"))[:2]
            with self:
                return Variable._execution_engine.run_backward(
                    tuple(tensors), tuple(gradients), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        return func(*args, **kwargs)


@contextmanager
def _fake_ranks(config: RunConfig, rank: int, world: int) -> Iterator[None]:
    """Megatron's groups, seen from one rank of a world that is not there."""
    compat.prepare_process()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            config.parallel.tensor,
            config.parallel.pipeline,
            context_parallel_size=config.parallel.context,
            expert_model_parallel_size=config.parallel.expert,
            expert_tensor_parallel_size=config.parallel.expert_tensor_size,
            create_gloo_process_groups=False,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(config.trainer.seed, force_reset_rng=True)
        yield
    finally:
        forget()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def trace_rank(
    config: RunConfig,
    model: ModelDescription,
    lengths: Mapping[str, int],
    rank: int,
    world: int,
    progress: Callable[[str], None] = lambda _: None,
    tracker: Tracker | None = None,
) -> RankTrace:
    """Trace an optimizer step of one rank.

    1. Build the model, DDP and the optimizer as a rank of the run does, and let the optimizer make its state.
    2. Run Megatron's schedule on packed micro-batches, then the optimizer's step.

    PP: as many micro-batches as the stage ever has in flight. What the rest of a step's micro-batches compute and send
    is counted as theirs; they hold no more memory. An online reference policy is in memory, and its forward pass, which
    holds less than the policy's, is left out.

    Args:
        config: of the run; ``dry_run.device`` is the target.
        model: its model.
        lengths: tokens of a sample by column, such as ``prompt_long``; every sample of the trace is like it.
        rank, world: the rank, and how many there are.
        progress: told what is done next.
        tracker: a new one, for whoever wants to read more of it than the result has.

    Raises:
        Exception: whatever the run would raise, :class:`~solopo_nemo.planning.dry_run.tracker.HostSync` included.
    """
    layers = config.model.layers
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=TORCH))
    mode, tracker = FakeTensorMode(allow_non_fake_inputs=True), tracker or Tracker()
    kernels = _KernelsOfCuda() if config.dry_run.device == "cuda" else nullcontext()
    with device.tracing(config.dry_run.device), _fake_ranks(config, rank, world), mode, tracker, kernels:
        progress("building the model")
        step = _Step(config, model, tracker)
        step.prepare(lengths, mode)
        if config.dry_run.device == "cuda" and layers != TORCH:
            engine.hold(step.core, max(step.batch["lengths"]))
            tracker.absent = engine.weight_shapes(step.core, step.batch["tokens"].shape[1])
        progress("forward and backward")
        step.run()
        progress("optimizer")
        step.finish()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        # Transformer Engine's rotary angles, which are in its table, are no fault of the run
        too_long = [str(made) for made in tracker.too_long if "dry_run/engine.py:" not in made.place]
        return RankTrace(rank, stage, tracker.peak(), step.flops, step.sent, too_long, dict(tracker.operations))


class _Step:
    """The parts of a rank, and an optimizer step of them."""

    def __init__(self, config: RunConfig, description: ModelDescription, tracker: Tracker) -> None:
        self.config, self.description, self.tracker = config, description, tracker
        self.objective = config.build_objective()
        tracker.chosen = description.experts.chosen if description.experts else 0
        tracker.groups = _group_names()
        # in bf16 the parameters are built as what Megatron's Float16Module makes of them; fake ones it cannot convert
        self.core = self._built()
        self.model = DistributedDataParallel(self.core.config, ddp_config(), self.core)
        tracker.keep("weights")
        tracker.mark((b.grad_data for b in (*self.model.buffers, *self.model.expert_parallel_buffers)), "gradients")
        # what NeMo sets (megatron_parallel.py:727, optim/megatron.py:92)
        self.core.config.finalize_model_grads_func = finalize_model_grads
        if self.model.ddp_config.overlap_grad_reduce:
            self.core.config.no_sync_func = self.model.no_sync
        tracker.syncs = True
        with _disable_current_modes():  # Megatron exchanges objects among the ranks (optimizer/__init__.py:149)
            self.optimizer: Any = get_megatron_optimizer(
                optimizer_config(config), [self.model], use_gloo_process_groups=False
            )
        fuse_adamw(self.optimizer)
        tracker.adopt(p for group in self.optimizer.param_groups for p in group["params"])
        # the host computes the norm of all gradients (megatron/core/utils.py:1028): here one that has to be clipped
        self.optimizer.get_grad_norm = lambda: 2.0 * config.optim.clip_grad
        self.optimizer.step()  # makes the optimizer's state
        tracker.keep("optimizer")

    def _built(self) -> Any:
        model = build_model(self.config, self.description, self.objective, None)
        set_model_parallel_attributes(model, SimpleNamespace(**parallel_sizes(self.config)))
        model.configure_model()
        balance(model.module)
        return model.module

    def prepare(self, lengths: Mapping[str, int], mode: FakeTensorMode) -> None:
        """Make the micro-batch, and the reference policy where it is in memory."""
        config, tracker, names = self.config, self.tracker, self.objective.reference_sequences
        sample = {name: np.zeros(size, dtype=np.int64) for name, size in lengths.items()} | {"id": SAMPLE}
        samples, layout = [sample] * config.trainer.micro_batch, packing_layout(config)

        def packed(sequences: Any) -> Any:
            batch = pack(samples, sequences, layout)
            tensors = {k: mode.from_tensor(v) for k, v in batch.items() if torch.is_tensor(v)}
            tracker.adopt(tensors.values(), "inputs")
            return {**batch, **tensors}

        self.batch: Batch = packed(self.objective.sequences)
        padded = tracker.lengths = self.batch["lengths"]
        if config.parallel.context > 1 and config.parallel.cp_comm_type == "p2p":
            local = self.batch["tokens"].shape[1]
            own = {size for p in self.core.parameters() for size in p.shape} | {local, local * tracker.chosen}
            tracker.whole = frozenset({sum(padded), max(padded)} - own)
        reference: Any = CachedReference(names, {SAMPLE: dict.fromkeys(names, -1.0)}) if names else None
        one_stage = parallel_state.get_pipeline_model_parallel_world_size() == 1
        if names and config.reference == "online":
            self.frozen = self._built().requires_grad_(False)
            tracker.keep("reference")
            if one_stage:
                reference = OnlineReference(names, self.frozen, lambda _: packed(names))
        elif names and config.reference == "adapter_off" and one_stage:
            reference = OnlineReference(names, self.model, lambda _: packed(names))
        self.reference, self.forward_step = reference, ForwardStep(self.objective, reference)

    def run(self) -> None:
        """Forward and backward of the micro-batches, and the reduction of the gradients."""
        config, tracker, pipeline = self.config, self.tracker, parallel_state.get_pipeline_model_parallel_world_size()
        ranks = parallel_state.get_data_parallel_world_size()
        batches = max(config.trainer.global_batch // (config.trainer.micro_batch * ranks), 1)
        traced = min(batches, pipeline)
        tracker.start("forward and backward")
        self.model.zero_grad_buffer()
        communicator: dict[str, Any] = {}
        if pipeline > 1:
            group, split = parallel_state.get_pipeline_model_parallel_group(), packing_layout(config).multiple
            p2p = _SameShapes(pp_group=group, config=self.core.config)
            p2p.shape = (self.batch["tokens"].shape[1] // split, 1, self.core.config.hidden_size)
            communicator = {"p2p_communicator": p2p, "pg_collection": ProcessGroupCollection.use_mpu_process_groups()}
        elif isinstance(self.reference, OnlineReference):
            self.reference.score([self.batch])
        with tracker.layers(self.core):
            get_forward_backward_func()(
                forward_step_func=self.forward_step,
                data_iterator=iter([self.batch] * traced),
                model=[self.model],
                num_microbatches=traced,
                seq_length=1,
                micro_batch_size=1,
                **communicator,
            )
        self.flops = tracker.flops * batches / traced
        # gradients are reduced once a step, whatever the number of micro-batches
        self.sent = {k: v * (1 if k == "data" else batches / traced) for k, v in tracker.sent.items()}

    def finish(self) -> None:
        """The optimizer's step."""
        self.tracker.syncs, self.tracker.moment = True, "optimizer"
        self.tracker.sent.clear()
        self.optimizer.step()
        for name, size in self.tracker.sent.items():
            self.sent[name] = self.sent.get(name, 0.0) + size


def _group_names() -> dict[str, str]:
    """The run's dimensions by the names of process groups."""
    groups: Any = ProcessGroupCollection.use_mpu_process_groups()
    experts = {"data": groups.expt_dp, "expert": groups.ep, "tensor": groups.expt_tp}
    own = {"data": groups.dp_cp, "pipeline": groups.pp, "context": groups.cp, "tensor": groups.tp}
    return {group.group_name: name for found in (experts, own) for name, group in found.items()}
