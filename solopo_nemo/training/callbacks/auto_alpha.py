"""``objective.alpha=auto``: the run chooses the weight of the alignment once, before the first update."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from megatron.core.num_microbatches_calculator import get_num_microbatches
from rich.progress import Progress

from solopo_nemo.core.step import Loss
from solopo_nemo.nemo_model.reduction import ObjectiveReduction, gradient_norm
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.datamodule import TripletDataModule

SAMPLES = 128
"""Smallest number of measured samples, in whole global batches: norms of small batches differ by a factor of ten."""
LEAST, MOST = 0.01, 100.0
"""Limits of alpha. Beyond them one of the terms has almost no gradient, and the ratio means nothing."""
DIGITS = 3
"""Significant digits of alpha. The rounded value can be typed in, and layouts that differ by rounding agree on it."""

logger = logging.getLogger("solopo_nemo")


Norms = dict[str, float]
"""L2 gradient norms of the two parts of a loss on one global batch: ``alignment``, that term without its weight alpha,
and ``rest``, the loss without that term."""


def balanced_alpha(norms: Sequence[Norms]) -> float:
    """The alpha at which the gradients of the alignment and of the rest of the loss have equal norms.

    It is ``mean |grad rest| / mean |grad alignment|``, limited to ``LEAST`` and ``MOST`` and rounded to ``DIGITS``
    digits. The alignment is the configured one: with ``detach_short`` only the long side has a gradient, and with a
    squared distance the gradient grows with the gap, so that a larger initial gap gives a smaller alpha.

    Args:
        norms: norms of one or more global batches.

    Raises:
        UserError: a term has no gradient.
        RunFault: a gradient is not finite.
    """
    rest, alignment = (sum(n[name] for n in norms) / len(norms) for name in ("rest", "alignment"))
    where = f"on the first {len(norms)} global batches"
    if not (math.isfinite(rest) and math.isfinite(alignment)):
        what = f"objective.alpha=auto: a gradient is not finite {where}; look at the data, or give alpha a number"
        raise RunFault(what, everywhere=True)
    if alignment == 0:
        raise UserError(
            f"objective.alpha=auto: the alignment has no gradient {where} (is each short prompt the same as its long "
            "one?); give alpha a number"
        )
    if rest == 0:
        raise UserError(
            f"objective.alpha=auto: the loss has no gradient but the alignment's {where}; give alpha a number"
        )
    return float(f"{min(max(rest / alignment, LEAST), MOST):.{DIGITS}g}")


@dataclass(frozen=True)
class Balance:
    """The content of ``alpha.json`` in the output folder.

    Attributes:
        alpha: the chosen value.
        norms: the norms that it was chosen from, one entry for each global batch.
    """

    alpha: float
    norms: list[Norms]


class AutoAlpha(pl.Callback):
    """Sets the run's alpha before the first update. Every checkpoint stores it, and a resumed run takes it again.

    It measures after the ``on_train_start`` of all callbacks, when the reference policy exists. Every layout gives the
    same value.

    Args:
        data: data of the run.
        path: path of ``alpha.json``.
        stop: request to stop, which ends the measurement.
    """

    def __init__(self, data: TripletDataModule, path: Path, stop: StopRequest) -> None:
        self.data, self.path, self.stop = data, path, stop
        self._balance: Balance | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state in a checkpoint: the :class:`Balance`."""
        return asdict(self._balance) if self._balance else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self._balance = Balance(**state_dict)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures alpha, unless the resumed checkpoint has it.

        Raises:
            UserError: the resumed run had a number as its alpha, or a term has no gradient.
            RunFault: a gradient is not finite.
        """
        if self._balance is None:
            if trainer.global_step:
                raise UserError(
                    f"objective.alpha=auto: the run that is resumed after step {trainer.global_step} had its alpha "
                    "given: give the same number"
                )
            norms = self._measure(trainer, pl_module)
            box = [Balance(balanced_alpha(norms), norms)]
            dist.broadcast_object_list(box)  # the norms of two ranks may differ in the last bit
            self._balance = box[0]
        pl_module.objective = replace(pl_module.objective, alpha=self._balance.alpha)
        if dist.get_rank() == 0:
            write_json(self.path, asdict(self._balance))
            at_limit = self._balance.alpha in (LEAST, MOST)
            logger.log(
                logging.WARNING if at_limit else logging.INFO,
                "objective.alpha=auto: alpha is %g%s",
                self._balance.alpha,
                f", a limit of what is chosen ({LEAST:g} to {MOST:g})" if at_limit else "",
            )

    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> list[Norms]:
        """The norms of the first global batches."""
        strategy: Any = trainer.strategy
        aligned = pl_module.objective
        terms: dict[str, Loss] = {"rest": replace(aligned, alpha=0.0), "alignment": aligned.alignment}
        batches = iter(strategy.process_dataloader(self.data.train_dataloader()))
        count = min(-(-SAMPLES // self.data.config.trainer.global_batch), self.data.steps)
        measured = list[Norms]()
        with Progress(disable=dist.get_rank() != 0, transient=True) as progress:
            task = progress.add_task("objective.alpha=auto: gradient norms", total=count * len(terms))
            for _ in range(count):
                own = list(islice(batches, get_num_microbatches()))
                norms = {}
                for name, loss in terms.items():
                    if self.stop.agree():
                        raise SIGTERMException
                    reduction = ObjectiveReduction(aligned, pl_module.reference, loss)
                    norms[name] = gradient_norm(strategy, iter(own), reduction)
                    progress.advance(task)
                measured.append(norms)
        return measured
