"""Which tensors are alive at which moment: the peak is read off, not guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Tensor:
    """Memory with a name.

    Attributes:
        name: unique among what is alive at a time.
        bytes: its size on one rank.
        formula: where the size comes from, in the symbols of :class:`solopo_nemo.planning.sizes.Sizes`.
    """

    name: str
    bytes: float
    formula: str = ""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: what runs.
        makes: tensors alive from here on.
        works: tensors alive during the operation only.
        drops: names of tensors that nobody needs after it.
    """

    name: str
    makes: tuple[Tensor, ...] = ()
    works: tuple[Tensor, ...] = ()
    drops: tuple[str, ...] = ()


class Timeline:
    """Runs steps in order and remembers the highest moment.

    Args:
        resident: what is alive all the time.

    Attributes:
        live: what is alive now, by name.
        peak: most bytes alive at once.
        moment: name of the step in which that was.
        at_peak: what was alive then.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        self.live = {tensor.name: tensor for tensor in resident}
        self._now = sum(tensor.bytes for tensor in self.live.values())
        self.peak, self.moment, self.at_peak = self._now, "at rest", tuple(self.live.values())

    def run(self, steps: Iterable[Step]) -> None:
        """Run steps.

        Raises:
            ValueError: a step makes what is alive already, or drops what is not: the description of a layer is wrong.
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
    """What steps leave alive: the tensors that a forward pass saves for backward."""
    timeline = Timeline()
    timeline.run(steps)
    return tuple(timeline.live.values())


def checkpointed(step: Step, output: str) -> Step:
    """The forward of a step whose inputs are kept instead of what it would save; its output goes on."""
    out = tuple(tensor for tensor in step.makes if tensor.name == output)
    rest = tuple(tensor for tensor in step.makes if tensor.name != output)
    return Step(step.name, out, (*rest, *step.works))


def again(step: Step, output: str) -> Step:
    """The same step in backward, before its own backward: everything that it would have saved comes to be.

    The output of the forward pass may still be kept by the next operation; the one computed again is counted as work.
    """
    rest = tuple(tensor for tensor in step.makes if tensor.name != output)
    out = tuple(
        Tensor(f"{tensor.name} again", tensor.bytes, tensor.formula) for tensor in step.makes if tensor.name == output
    )
    return Step(f"{step.name} again", rest, (*out, *step.works), step.drops)
