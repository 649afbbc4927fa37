"""Packed micro-batches of the tokenized samples, in an order that depends on the seed and the step only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import datasets
import lightning.pytorch as pl
import nemo.lightning as nl
import numpy as np
from megatron.core import parallel_state
from nemo.lightning.data import WrappedDataLoader
from pyarrow.compute import list_value_length
from torch.utils.data import Dataset

from solopo_nemo.config.schema import RunConfig
from solopo_nemo.data.balance import balanced_order
from solopo_nemo.data.packing import Batch, pack
from solopo_nemo.data.triplets import answer_columns, sequence_columns
from solopo_nemo.data.turns import answer_lengths
from solopo_nemo.nemo_model.policy import packing_layout
from solopo_nemo.objectives import Objective
from solopo_nemo.planning import ModelShape, forward_flops
from solopo_nemo.planning import Sequence as Lengthed
from solopo_nemo.training.prepare import shuffled, total_steps


class SampleStream(Dataset[dict[str, Any]]):
    """All epochs of the data set, each in an order of its own. Item i does not depend on the items read before.

    The samples of a global batch depend on the seed and the step only. Their order in it depends on the layout, as it
    balances the work of the data-parallel ranks.

    Args:
        samples: tokenized samples, memory-mapped.
        steps: number of global batches over all epochs.
        global_batch: samples of a step.
        seed: seed of the shuffles.
        costs: fp64 ``[samples]``, operations of each sample (see :func:`sample_costs`).
        ranks: number of data-parallel ranks.
        micro_batch: samples of a forward pass of a rank.
    """

    def __init__(
        self,
        samples: datasets.Dataset,
        steps: int,
        global_batch: int,
        seed: int,
        costs: np.ndarray,
        ranks: int = 1,
        micro_batch: int = 1,
    ) -> None:
        self.samples = samples.with_format("numpy")
        self.steps, self.global_batch, self.seed = steps, global_batch, seed
        self.costs, self.ranks, self.micro_batch = costs, ranks, micro_batch
        self._epoch, self._shuffled = -1, np.empty(0, dtype=np.int64)
        self._step, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, place = divmod(index, self.global_batch)
        if step != self._step:
            batch = np.array([self._drawn(step * self.global_batch + i) for i in range(self.global_batch)])
            self._step = step
            self._order = batch[balanced_order(self.costs[batch].tolist(), self.ranks, self.micro_batch)]
        return self.samples[int(self._order[place])]

    def _drawn(self, index: int) -> int:
        epoch, place = divmod(index, len(self.samples))
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffled = shuffled(self.seed, epoch, len(self.samples))
        return int(self._shuffled[place])


def sample_costs(samples: datasets.Dataset, sequences: Sequence[str], shape: ModelShape) -> np.ndarray:
    """The floating-point operations of each sample's sequences, fp64 ``[samples]``.

    Only the lengths of the prompts are read, not their token ids.

    Args:
        samples: tokenized samples, memory-mapped, without an indices mapping.
        sequences: names of the sequences that the policy runs.
        shape: shape of the model.
    """
    costs, names = np.zeros(len(samples)), {column: [0] for column in samples.column_names}
    for name in sequences:
        prompt_column, response_column = sequence_columns()[name]
        prompt = list_value_length(samples.data.column(prompt_column)).to_numpy().astype(np.float64)
        for column in answer_columns(names, response_column):
            response, scored = answer_lengths(samples.data.column(column))
            flops = forward_flops(shape, Lengthed(name, prompt + response - 1, scored)).total  # type: ignore[arg-type]
            costs += (response > 0) * flops
    return costs


class TripletDataModule(pl.LightningDataModule):
    """Provides the packed micro-batches of a run.

    DP: Megatron's sampler splits each global batch over the data-parallel ranks. CP: each rank packs its own share of
    the tokens (:func:`solopo_nemo.data.packing.pack`). TP, SP, PP: all ranks pack the same micro-batches.

    Args:
        config: configuration of the run.
        objective: names the sequences of a sample.
        samples: tokenized samples, memory-mapped.
        shape: shape of the model, for the cost of each sample.
    """

    def __init__(self, config: RunConfig, objective: Objective, samples: datasets.Dataset, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.config, self.objective, self.samples = config, objective, samples
        self._samples = samples.with_format("numpy")
        self.steps = total_steps(config, len(samples))
        # seq_len is unused: with variable_seq_lengths the pipeline stages exchange their shapes
        self.data_sampler = nl.MegatronDataSampler(
            seq_len=1,
            micro_batch_size=config.trainer.micro_batch,
            global_batch_size=config.trainer.global_batch,
            output_log=False,
        )

    def pack(self, samples: Sequence[Mapping[str, Any]], sequences: Sequence[str]) -> Batch:
        """Packs the named sequences of some samples: this rank's share of the tokens."""
        return pack(samples, sequences, packing_layout(self.config))

    def reference_batch(self, batch: Batch) -> Batch:
        """Packs the sequences that the reference policy scores, of the samples of a micro-batch."""
        samples = [self._samples[self._row_of[i]] for i in batch["ids"]]
        return self.pack(samples, self.objective.reference_sequences)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.samples["id"])}

    def train_dataloader(self) -> WrappedDataLoader:
        """The micro-batches after the restored step."""
        assert self.trainer is not None
        self.data_sampler.init_consumed_samples = self.trainer.global_step * self.config.trainer.global_batch
        self.data_sampler.init_global_step = self.trainer.global_step
        stream = SampleStream(
            self.samples,
            self.steps,
            self.config.trainer.global_batch,
            self.config.trainer.seed,
            sample_costs(self.samples, self.objective.sequences, self.shape),
            parallel_state.get_data_parallel_world_size(),
            self.config.trainer.micro_batch,
        )
        collate = partial(self.pack, sequences=self.objective.sequences)
        return WrappedDataLoader(mode="train", dataset=stream, num_workers=0, collate_fn=collate)
