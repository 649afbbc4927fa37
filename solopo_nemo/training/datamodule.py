"""Tokenized samples to packed micro-batches, in an order that depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import lightning.pytorch as pl
import nemo.lightning as nl
import numpy as np
import torch
from megatron.core import parallel_state
from nemo.lightning.data import WrappedDataLoader
from torch.utils.data import Dataset

from solopo_nemo.data.packing import Layout, pack
from solopo_nemo.objectives import Objective
from solopo_nemo.training.config import RunConfig
from solopo_nemo.training.prepare import total_steps


class SampleStream(Dataset[dict[str, Any]]):
    """Epoch after epoch of the data set, each in its own order; item i never depends on what came before.

    Args:
        samples: tokenized samples, memory-mapped.
        length: number of items, over all epochs.
        seed: of the shuffles.
    """

    def __init__(self, samples: datasets.Dataset, length: int, seed: int) -> None:
        self.samples = samples.with_format("numpy")
        self.length = length
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self.samples))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        return self.samples[int(self._order[place])]


class Collate:
    """Packs samples for one rank and adds what the objective wants of the reference policy.

    Args:
        objective: names the sequences.
        layout: this rank's place.
        scores: cached reference log-probabilities by sample id and sequence, or ``None``.
        online: also pack the sequences that the frozen copy will score.
    """

    def __init__(
        self,
        objective: Objective,
        layout: Layout,
        scores: Mapping[str, Mapping[str, float]] | None = None,
        online: bool = False,
    ) -> None:
        self.objective, self.layout, self.scores, self.online = objective, layout, scores, online

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch; see :func:`solopo_nemo.data.packing.pack`."""
        batch: dict[str, Any] = pack(samples, self.objective.sequences, self.layout)
        batch["ids"] = [sample["id"] for sample in samples]
        names = self.objective.reference_sequences
        if names and self.online:
            batch["reference_batch"] = pack(samples, names, self.layout)
        elif names and self.scores is not None:
            batch["reference"] = {
                name: torch.tensor([self.scores[i][name] for i in batch["ids"]], dtype=torch.float32) for name in names
            }
        return batch


def packing_layout(config: RunConfig, pad_id: int) -> Layout:
    """This rank's place, once Megatron's groups exist."""
    return Layout(
        cp_size=parallel_state.get_context_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        multiple=config.parallel.tensor if config.parallel.sequence else 1,
        pad_id=pad_id,
    )


class TripletDataModule(pl.LightningDataModule):
    """Feeds the training samples; Megatron's sampler cuts each global batch over data-parallel ranks.

    Args:
        config: of the run.
        objective: names the sequences.
        samples: tokenized samples.
        pad_id: the tokenizer's padding id.

    Attributes:
        scores: set by the reference callback before the first batch.
    """

    def __init__(self, config: RunConfig, objective: Objective, samples: datasets.Dataset, pad_id: int) -> None:
        super().__init__()
        self.config, self.objective, self.samples, self.pad_id = config, objective, samples, pad_id
        self.steps = total_steps(config, len(samples))
        self.scores: dict[str, dict[str, float]] | None = None
        # pipeline stages exchange the true shapes: the sampler's sequence length is never used
        self.data_sampler = nl.MegatronDataSampler(
            seq_len=1,
            micro_batch_size=config.trainer.micro_batch,
            global_batch_size=config.trainer.global_batch,
            output_log=False,
        )

    def collate(self) -> Collate:
        """The collate function of this rank."""
        layout = packing_layout(self.config, self.pad_id)
        return Collate(self.objective, layout, self.scores, online=self.config.reference == "online")

    def train_dataloader(self) -> WrappedDataLoader:
        """Micro-batches from the first sample that the restored step has not seen."""
        assert self.trainer is not None
        self.data_sampler.init_consumed_samples = self.trainer.global_step * self.config.trainer.global_batch
        self.data_sampler.init_global_step = self.trainer.global_step
        stream = SampleStream(self.samples, self.steps * self.config.trainer.global_batch, self.config.trainer.seed)
        return WrappedDataLoader(mode="train", dataset=stream, num_workers=0, collate_fn=_Late(self.collate))


class _Late:
    """Builds the collate function at the first batch: the reference scores come after the loader."""

    def __init__(self, make: Callable[[], Collate]) -> None:
        self._make = make
        self._collate: Collate | None = None

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self._collate is None:
            self._collate = self._make()
        return self._collate(samples)
