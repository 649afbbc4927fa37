"""The adapters of a run's checkpoint: export as a folder in peft's format, and merging into the base weights."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from solopo_nemo.config.schema import RunConfig, read_config
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.families import hf
from solopo_nemo.families.adapter import SETTINGS, WEIGHTS, read_adapter, write_adapter
from solopo_nemo.families.weights import expected_tensors, hf_tensors, imported_dtype
from solopo_nemo.runtime import logs
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import run_isolated

if TYPE_CHECKING:
    from solopo_nemo.core.lora import LoRA
    from solopo_nemo.families.description import ModelDescription
    from solopo_nemo.runtime.isolated import Progress

logger = logging.getLogger("solopo_nemo")


def lora_of(config: RunConfig, description: ModelDescription) -> LoRA | None:
    """The settings of a run's adapters; ``None`` if the run trains all weights.

    Raises:
        UserError: ``model.adapter`` is no adapter of this model, or its settings differ from ``peft.*``.
    """
    peft, folder = config.peft, config.model.adapter
    if not peft.on:
        return None
    assert peft.rank is not None and peft.alpha is not None and peft.dropout is not None
    try:
        initial = read_adapter(Path(folder), description) if folder else None
    except UserError as error:
        raise UserError(f"model.adapter={folder}: {error}") from None
    if initial and (initial.rank, initial.alpha, initial.targets) != (peft.rank, peft.alpha, peft.modules):
        raise UserError(
            f"model.adapter={folder}: has other settings than the run; give peft.rank={initial.rank} "
            f"peft.alpha={initial.alpha:g} 'peft.targets=[{','.join(initial.targets)}]'"
        )
    read = initial.tensor if initial else None
    with logs.quiet_imports():
        from solopo_nemo.core.lora import LoRA

    return LoRA(peft.rank, peft.alpha, peft.dropout, peft.modules, config.trainer.seed, read)


def initial_adapter(config: RunConfig, description: ModelDescription) -> str:
    """The SHA-256 of the weights of ``model.adapter``; empty without one.

    Raises:
        UserError: see :func:`lora_of`.
    """
    lora_of(config, description)
    folder = config.model.adapter
    return hashlib.sha256((Path(folder) / WEIGHTS).read_bytes()).hexdigest() if folder else ""


def run_of(checkpoint: Path) -> RunConfig | None:
    """The configuration of the run that wrote a checkpoint of adapters; ``None`` for a checkpoint of all weights."""
    file = checkpoint / "config.yaml"
    config = read_config(file) if file.is_file() else None
    return config if config and config.peft.on else None


def base_of(checkpoint: Path) -> Path:
    """The checkpoint of the base weights that a checkpoint of adapters belongs to.

    Raises:
        UserError: it does not exist any more.
    """
    base = checkpoint.resolve().parents[1] / "initial"
    if not hf.is_checkpoint(base):
        raise UserError(
            f"{checkpoint}: holds adapters alone, and {base}, the model that they belong to, is not there: keep a "
            "checkpoint in its run's output_dir, or use the run's hf_adapter folder"
        )
    return base


def export_adapter(checkpoint: Path, destination: Path) -> None:
    """Writes the adapters of a checkpoint as a folder that peft loads.

    The logits of Megatron's model are compared with those of transformers' model and the written adapters.

    Args:
        checkpoint: a checkpoint of a run with ``peft=lora``, in its output folder.
        destination: the folder to write; an existing one is replaced.

    Raises:
        UserError: the checkpoint of the base weights does not exist.
        LogitsDifferError: the logits differ.
    """
    from solopo_nemo.nemo_model.convert import staged

    base_of(checkpoint)
    began = time.monotonic()
    with staged(destination, 0) as temporary:
        found = run_isolated(f"the export of {checkpoint}", _export_adapter, checkpoint, temporary, cuda=False)
    worst, seconds = max(found.values()), time.monotonic() - began
    logger.info("%s: logits differ by %.1e of the largest from transformers'; %.0f s", destination, worst, seconds)


def _export_adapter(progress: Progress, checkpoint: Path, folder: Path) -> dict[str, float]:
    from solopo_nemo.core import device
    from solopo_nemo.nemo_model import verify

    device.prepare_process()
    from solopo_nemo.core.lora import adapters_of
    from solopo_nemo.nemo_model.models import load_module, one_rank

    run, description = run_of(checkpoint), hf.read_config(checkpoint / "hf")
    assert run is not None and run.peft.rank is not None and run.peft.alpha is not None and run.peft.dropout is not None
    sequences = verify.probes(load_tokenizer(checkpoint / "hf"), description.vocab_size)
    dtype = imported_dtype(checkpoint)
    with one_rank(), torch.no_grad():
        module = load_module(checkpoint, description, dtype, merge=False)
        tensors = {
            (adapter.number, *name.rsplit("_", 1)): parameter
            for adapter in adapters_of(module)
            for name, parameter in adapter.named_parameters()
        }
        base = run.model.init
        if Path(base).exists():  # users may publish the folder, so that it contains no local path
            base = Path(base).name
        write_adapter(folder, tensors, description, base, run.peft.rank, run.peft.alpha, run.peft.dropout)  # type: ignore[arg-type]
        got = verify.megatron_logits(module, sequences, progress)
        state = dict(hf_tensors(module, expected_tensors(description, dtype), description.family))
    want = verify.adapted_logits(state, folder, description, dtype, sequences, progress)
    return verify.compare(got, want, f"export of {checkpoint} to {SETTINGS}")


def merge_into_weights(module: Any) -> None:
    """Adds the adapters of a Megatron model on one rank to its weights in fp32, and switches the adapters off."""
    from solopo_nemo.core.lora import adapters_of

    with torch.no_grad():
        for adapter in adapters_of(module):
            (layer,), (down, up) = adapter.layer, adapter()
            scale = adapter.lora.alpha / adapter.lora.rank
            whole = layer.weight.float()
            add = whole.baddbmm_ if adapter.experts else whole.addmm_
            layer.weight.copy_(add(up.float(), down.float(), alpha=scale))
            adapter.active = False
