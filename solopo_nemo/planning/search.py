"""Search for the fastest layout on a machine and for the longest context that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import Memory, memory
from solopo_nemo.planning.run import GPU, Run
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.step_time import Machine, StepTime, step_time
from solopo_nemo.planning.traced import is_known
from solopo_nemo.planning.workload import Lengths
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import OFFERED

if TYPE_CHECKING:
    from solopo_nemo.config.schema import RunConfig

RECOMPUTE = ("none", "selective", "full")
LONGEST = 1 << 26
"""Upper limit of the context search, in tokens."""


@dataclass(frozen=True)
class Plan:
    """A run with its predicted memory and time."""

    run: Run
    memory: Memory
    time: StepTime
    machine: Machine

    @classmethod
    def of(cls, run: Run, machine: Machine) -> Plan:
        """Predict a run."""
        return cls(run, memory(run), step_time(run, machine), machine)

    @property
    def fits(self) -> bool:
        """True if the peak is within the usable device memory."""
        return self.memory.gib <= self.machine.budget_gib

    def hours(self, samples: int) -> float:
        """Hours of an epoch with ``samples`` samples."""
        return self.time.total * samples / self.run.global_batch / 3600

    def as_json(self) -> dict[str, Any]:
        """The values as plain JSON data."""
        return {
            "layout": self.run.layout.as_json(),
            "recompute": self.run.recompute,
            "micro_batch": self.run.micro_batch,
            "optimizer": self.run.optimizer,
            "fits": self.fits,
            "memory": self.memory.as_json(),
            "step_seconds": round(self.time.total, 3),
            "compute_seconds": round(self.time.compute, 3),
            "exposed_seconds": {name: round(seconds, 3) for name, seconds in self.time.exposed.items()},
            "bubble_seconds": round(self.time.bubble, 3),
            "utilisation": round(self.time.utilisation, 4),
        }


def with_layout(config: RunConfig, layout: Layout, **model: Any) -> RunConfig:
    """A copy of a configuration with another layout. Keyword arguments replace keys of ``model``."""
    parallel = dataclasses.replace(
        config.parallel,
        tensor=layout.tensor,
        sequence=layout.sequence,
        context=layout.context,
        cp_comm_type=layout.cp_comm_type,
        pipeline=layout.pipeline,
        data=None,
        expert=layout.expert,
        expert_tensor=layout.expert_tensor if layout.expert_tensor > 1 else None,
    )
    return dataclasses.replace(config, parallel=parallel, model=dataclasses.replace(config.model, **model))


def valid_layouts(config: RunConfig, shape: ModelShape, world: int, gpus_per_node: int) -> Iterator[Layout]:
    """Every layout of ``world`` ranks that passes the recipe's checks, with tensor parallelism within a node.

    Tensor parallelism always comes with sequence parallelism, which saves memory at nearly the same traffic. A model's
    experts are split over any of the ranks that may hold them.
    """
    # time and memory are those of Transformer Engine's layers, so a layout where only torch's run is not proposed; but
    # Gemma 3, of which they lack something, has torch's alone
    layers = config.model.layers
    layers = "transformer_engine" if layers == "auto" and not shape.family.own else layers
    modelled = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=layers))
    for tensor in _divisors(world, min(world, gpus_per_node)):
        for pipeline in _divisors(world // tensor, shape.num_hidden_layers):
            for context in _divisors(world // (tensor * pipeline), world):
                data = world // (tensor * pipeline * context)
                for mode in OFFERED if context > 1 else (config.parallel.cp_comm_type,):
                    for experts in expert_sizes(shape, tensor, tensor * context * data):
                        layout = Layout(tensor, tensor > 1, context, mode, pipeline, data, *experts)
                        if is_valid(modelled, shape, layout, GPU):
                            yield layout


def expert_sizes(shape: ModelShape, tensor: int, ranks: int) -> list[tuple[int, int]]:
    """Expert and expert-tensor sizes that divide a model's experts and the ``ranks`` among which they are split."""
    if shape.experts is None:
        return [(1, 1)]
    count = shape.experts.count
    experts, shares = _divisors(count, min(count, ranks))[1:], _divisors(tensor, tensor)
    split = [sizes for sizes in product(experts, shares) if ranks % (sizes[0] * sizes[1]) == 0]
    return [(1, 1), *split]


def is_valid(config: RunConfig, shape: ModelShape, layout: Layout, device: str) -> bool:
    """True if a layout passes the recipe's checks on a device."""
    from solopo_nemo.config.world import check_model, check_world

    changed = with_layout(config, layout)
    try:
        check_world(changed, layout.world)
        check_model(changed, shape, on_gpu=device == GPU)
    except UserError:
        return False
    return True


def search(
    config: RunConfig, shape: ModelShape, lengths: Lengths, machine: Machine, optimizer: str = "sharded"
) -> list[Plan]:
    """Plans that fit on ``machine``, fastest first; plans of equal speed are sorted by memory.

    The search varies the layout and recomputation. All other settings are those of the configuration. Layouts for which
    there are no formulas are left out.
    """
    plans = []
    for layout in valid_layouts(config, shape, machine.gpus, machine.gpus_per_node):
        run = Run.of(with_layout(config, layout), shape, lengths, machine.gpus, GPU, optimizer)
        if not is_known(run):
            continue
        for other in (dataclasses.replace(run, recompute=recompute) for recompute in RECOMPUTE):
            if (found := memory(other)).gib <= machine.budget_gib:
                plans.append(Plan(other, found, step_time(other, machine), machine))
    return sorted(plans, key=lambda plan: (round(plan.time.total, 3), plan.memory.peak))


def longest(config: RunConfig, run: Run, shorter: Lengths, machine: Machine, above: int = 0) -> int:
    """The longest long prompt in tokens with which a run fits; ``above`` if none that is longer does.

    Args:
        config: configuration with the objective.
        run: the run; its lengths are ignored.
        shorter: lengths of the short prompt and of the responses.
        machine: machine whose memory is the limit.
        above: length from which to search.
    """
    from solopo_nemo.planning.workload import Workload

    objective = config.build_objective()

    def fits(long: int) -> bool:
        workload = Workload.of(objective, dataclasses.replace(shorter, long=long))
        return memory(dataclasses.replace(run, workload=workload)).gib <= machine.budget_gib

    low, high = above, above + 1
    while high <= LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 1024):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _divisors(number: int, largest: int) -> list[int]:
    return [i for i in range(1, min(number, largest) + 1) if number % i == 0]
