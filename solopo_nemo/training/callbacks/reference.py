"""The frozen reference policy of a run: its scores are computed once and kept on disk, or it runs before each step.

Each callback is the :class:`solopo_nemo.core.step.Reference` of the run's model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from rich.progress import Progress

from solopo_nemo.core.lora import adapters_off
from solopo_nemo.core.reference import CachedReference, OnlineReference, by_name
from solopo_nemo.core.scoring import frozen_copy, score_batches
from solopo_nemo.runtime.signals import StopRequest
from solopo_nemo.training.datamodule import TripletDataModule
from solopo_nemo.training.prepare import seen_samples
from solopo_nemo.training.reference_cache import ReferenceCache, Scores


class ScoredReference(CachedReference, pl.Callback):
    """Scores every sample of the run once with the initial weights, before the first step.

    The untrained policy, with its adapters off, is the reference policy, so that no second copy is in memory. The
    scores are appended to the cache while the scoring runs. It works at any layout.

    Args:
        cache: the cache on disk.
        data: data of the run.
        stop: request to stop, which ends the scoring; finished scores stay in the cache.
        only: whether to end the run when the cache is complete (``tools/cache_reference.py``).
    """

    def __init__(self, cache: ReferenceCache, data: TripletDataModule, stop: StopRequest, only: bool = False) -> None:
        super().__init__(data.objective.reference_sequences)
        self.cache, self.data, self.stop, self.only = cache, data, stop, only

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Completes the cache, and checks that it has all samples of the run.

        Raises:
            UserError: a resumed run lacks scores, which its trained policy cannot compute any more.
        """
        names, scores = list(self.data.samples["id"]), self.cache.read()
        seen = seen_samples(self.data.config, len(names))
        lacking = sum(names[i] not in scores for i in seen)
        dist.barrier()  # all ranks have read the cache before rank 0 appends to it
        if lacking and trainer.global_step:
            raise self.cache.incomplete(lacking)
        if lacking:
            # whole micro-batches of consecutive samples: their composition does not depend on the number of steps
            size = self.data.config.trainer.micro_batch * parallel_state.get_data_parallel_world_size()
            rows = (i for block in np.unique(seen // size) for i in range(block * size, (block + 1) * size))
            scores |= self._score(pl_module, [i for i in rows if i < len(names) and names[i] not in scores])
        if uncovered := sum(names[i] not in scores for i in seen):
            raise RuntimeError(f"{self.cache.file}: {uncovered} samples without reference scores after scoring")
        self.table = scores
        if self.only:
            trainer.should_stop = True

    def _score(self, pl_module: Any, missing: list[int]) -> Scores:
        names, size = self.sequences, self.data.config.trainer.micro_batch
        dp, dp_rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        samples = self.data.samples.with_format("numpy")
        done: Scores = {}
        with Progress(disable=dist.get_rank() != 0, transient=True) as progress:
            task = progress.add_task("reference log-probabilities", total=len(missing))
            # 8 micro-batches for each pipeline stage and data-parallel rank, then the scores go to disk
            piece = size * dp * parallel_state.get_pipeline_model_parallel_world_size() * 8
            for start in range(0, len(missing), piece):
                if self.stop.agree():
                    raise SIGTERMException
                indices = missing[start : start + piece]
                rounds = [indices[i : i + size * dp] for i in range(0, len(indices), size * dp)]
                # every data-parallel rank runs the same number of micro-batches; a missing one repeats the first
                groups = [r[dp_rank * size : (dp_rank + 1) * size] or r[:size] for r in rounds]
                packed = [self.data.pack([samples[i] for i in group], names) for group in groups]
                with adapters_off(pl_module.module):
                    results = score_batches(pl_module.module, packed)
                rows: Scores = {}
                for batch, result in zip(packed, results, strict=True):
                    found = {name: scores.tolist() for name, scores in by_name(names, batch, result).items()}
                    for number, sample in enumerate(batch["ids"]):
                        own = [pair for pair, of in enumerate(batch["pair_samples"]) if of == number]
                        rows[sample] = {
                            name: values[own[0]] if len(own) == 1 else [values[pair] for pair in own]
                            for name, values in found.items()
                        }
                gathered: list[Any] = [None] * dp
                dist.all_gather_object(gathered, rows, group=parallel_state.get_data_parallel_group())
                finished = {key: row for part in gathered for key, row in part.items()}
                if dist.get_rank() == 0:
                    self.cache.append(finished)
                done |= finished
                progress.advance(task, len(indices))
        return done


class OnlineScores(OnlineReference, pl.Callback):
    """Scores each global batch before the policy, with a frozen copy or with the policy's adapters off.

    Args:
        checkpoint: checkpoint of the initial weights, which the copy has also after a resume; ``None`` takes the policy
            with its adapters off.
        data: data of the run.
    """

    def __init__(self, checkpoint: Path | None, data: TripletDataModule) -> None:
        super().__init__(data.objective.reference_sequences, None, data.reference_batch)
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Builds the frozen copy, which is no part of the trained, wrapped and saved model."""
        self.module = pl_module.module
        if self.checkpoint is not None:
            model = pl_module.config.configure_model(pl_module.tokenizer)
            self.module = frozen_copy(model, self.checkpoint, pl_module.logits_chunk_size)

    def on_megatron_step_start(self, step: Any) -> Any:
        """NeMo's event before a global batch: scores its micro-batches and passes them on to the policy's step."""
        if step.forward_only:
            return step
        batches = [step.pl_module.data_step(step.data) for _ in range(get_num_microbatches())]
        self.score(batches)
        return dataclasses.replace(step, data=iter(batches))
