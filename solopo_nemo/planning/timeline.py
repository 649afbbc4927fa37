"""Simulation of tensor lifetimes, which yields the memory peak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Tensor:
    """A named block of memory.

    Attributes:
        name: name, unique among the tensors alive at the same time.
        bytes: size on one rank.
        formula: formula of the size, in the symbols of :class:`solopo_nemo.planning.sizes.Sizes`.
    """

    name: str
    bytes: float
    formula: str = ""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: name of the operation.
        makes: tensors that it allocates and keeps.
        works: tensors that are alive only during the operation.
        drops: names of the tensors that are freed after it.
    """

    name: str
    makes: tuple[Tensor, ...] = ()
    works: tuple[Tensor, ...] = ()
    drops: tuple[str, ...] = ()


class Timeline:
    """Runs steps in order and records the memory peak.

    Args:
        resident: tensors that are alive all the time.

    Attributes:
        live: name -> tensor of the tensors that are alive now.
        peak: maximum bytes alive at the same time.
        moment: name of the step at the peak.
        at_peak: tensors that were alive at the peak.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        self.live = {tensor.name: tensor for tensor in resident}
        self._now = sum(tensor.bytes for tensor in self.live.values())
        self.peak, self.moment, self.at_peak = self._now, "at rest", tuple(self.live.values())

    def run(self, steps: Iterable[Step]) -> None:
        """Run steps.

        Raises:
            ValueError: a step allocates a tensor that is alive, or frees one that is not. The layer model is wrong.
        """
        for step in steps:
            for tensor in step.makes:
                if tensor.name in self.live:
                    raise ValueError(f"{step.name}: {tensor.name!r} is alive already")
                self.live[tensor.name] = tensor
                self._now += tensor.bytes
            during = self._now + sum(tensor.bytes for tensor in step.works)
            if during > self.peak:
                self.peak, self.moment = during, step.name
                self.at_peak = (*self.live.values(), *step.works)
            for name in step.drops:
                if name not in self.live:
                    raise ValueError(f"{step.name}: {name!r} is not alive")
                self._now -= self.live.pop(name).bytes


def kept(steps: Sequence[Step]) -> tuple[Tensor, ...]:
    """The tensors that are alive after steps, i.e. the tensors that a forward pass saves for backward."""
    timeline = Timeline()
    timeline.run(steps)
    return tuple(timeline.live.values())


def checkpointed(step: Step, output: str) -> Step:
    """The forward step under activation checkpointing: it keeps the output, and the other tensors are temporary."""
    out = tuple(tensor for tensor in step.makes if tensor.name == output)
    rest = tuple(tensor for tensor in step.makes if tensor.name != output)
    return Step(step.name, out, (*rest, *step.works))


def again(step: Step, output: str) -> Step:
    """The recomputation of a checkpointed step in backward: it allocates the tensors that the step saves.

    The next operation may still hold the original output, so the recomputed output counts as temporary memory.
    """
    rest = tuple(tensor for tensor in step.makes if tensor.name != output)
    out = tuple(
        Tensor(f"{tensor.name} again", tensor.bytes, tensor.formula) for tensor in step.makes if tensor.name == output
    )
    return Step(f"{step.name} again", rest, (*out, *step.works), step.drops)
