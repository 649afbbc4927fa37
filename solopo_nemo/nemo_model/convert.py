"""Converts Hugging Face folders to NeMo checkpoints and back, and compares each result with transformers.

A conversion runs in a process of its own, because NeMo's importer initializes Megatron with one rank. A checkpoint has,
beside NeMo's ``weights`` and ``context``, an ``hf`` folder with the model's configuration and tokenizer. An export
copies it, so that it differs from the imported folder in the weights only.

Memory, with P the size of the weight files; one model is in memory at a time:

- import: the fused tensors (about 0.8 P; the others stay mapped from the files) and the buffers of the writer;
- export: P and two shards;
- comparison: P, and embedding, head and one layer in fp32.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.families import hf
from solopo_nemo.nemo_model.adapters import base_of, run_of
from solopo_nemo.nemo_model.end_tokens import lacking_end_tokens
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import run_isolated
from solopo_nemo.runtime.json_files import write_json

if TYPE_CHECKING:
    from solopo_nemo.families.description import ModelDescription
    from solopo_nemo.runtime.isolated import Progress

Summary = dict[str, Any]

logger = logging.getLogger("solopo_nemo")


def import_hf(
    source: Path,
    destination: Path,
    *,
    rope_scaling: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Writes a Hugging Face folder as a NeMo checkpoint that loads at any parallel layout.

    Args:
        source: folder with safetensors and a tokenizer.
        destination: folder to write.
        rope_scaling: replaces the model's own, in the checkpoint and in every later export.
        trust_remote_code: run Python code that the folder contains.
        overwrite: replace another conversion in ``destination``.

    Returns:
        A summary of the conversion. If ``destination`` holds this conversion already, nothing is done and its summary
        is returned.

    Raises:
        UserError: the folder cannot be converted, or the destination is in use; before any work.
        LogitsDifferError: the logits differ from those of transformers.
    """
    from solopo_nemo.families.weights import find_weights

    began = time.monotonic()
    config = hf.read_config(source, rope_scaling=rope_scaling)
    origin = _origin("import", source, rope_scaling)
    if done := _already(destination, source, origin, overwrite):
        return done
    weights = find_weights(source, config)
    load_tokenizer(source, trust_remote_code)
    with staged(destination, weights.bytes) as temporary:
        logits = run_isolated(
            f"the import of {source}", _import, source, temporary, weights.dtype, rope_scaling, trust_remote_code
        )
        if logits is None:  # the import ran on a GPU; the comparison runs without CUDA
            what = f"the comparison of {source} with its import"
            logits = run_isolated(
                what, _compare_import, source, temporary, weights.dtype, trust_remote_code, cuda=False
            )
        done = _summary(began, "import", source, destination, config, logits)
        done |= {"dtype": str(weights.dtype).removeprefix("torch."), "parameters": weights.parameters, "origin": origin}
        write_json(temporary / hf.RECORD, done)
    return done


def export_hf(
    checkpoint: Path,
    destination: Path,
    *,
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Writes a NeMo checkpoint as a Hugging Face folder: safetensors, configuration, tokenizer.

    Args:
        checkpoint: folder with ``weights``, ``context`` and ``hf``.
        destination: folder to write.
        max_shard_size: argument of transformers' ``save_pretrained``, such as ``5GB``.
        trust_remote_code: run Python code that the ``hf`` folder contains.
        overwrite: replace another conversion in ``destination``.

    Returns, Raises: see :func:`import_hf`.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    began = time.monotonic()
    if not hf.is_checkpoint(checkpoint):
        raise UserError(f"{checkpoint}: no NeMo checkpoint, which has folders weights and context")
    if not (checkpoint / "hf").is_dir():
        raise UserError(f"{checkpoint}/hf: missing; copy the model's config.json and tokenizer there")
    config = hf.read_config(checkpoint / "hf")
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=max_shard_size)
    except ValueError as error:
        raise UserError(f"--max-shard-size {max_shard_size}: {error}; give a number and a unit such as 5GB") from None
    origin = _origin("export", checkpoint, {"max_shard_size": max_shard_size})
    if done := _already(destination, checkpoint, origin, overwrite):
        return done
    tokenizer = load_tokenizer(checkpoint / "hf", trust_remote_code)
    for name, ids in lacking_end_tokens(checkpoint, checkpoint / "hf").items():
        tokens = ", ".join(f"{token} ({i})" for token, i in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
        logger.info("%s: %s is added to eos_token_id: training ended the answers with it", destination / name, tokens)
    whole = base_of(checkpoint) if run_of(checkpoint) else checkpoint
    size = sum(path.stat().st_size for path in (whole / "weights").iterdir() if path.suffix == ".distcp")
    with staged(destination, size // 3) as temporary:  # a checkpoint may hold two fp32 moments beside the weights
        logits, found = run_isolated(
            f"the export of {checkpoint}", _export, checkpoint, temporary, max_shard_size, trust_remote_code, cuda=False
        )
        done = _summary(began, "export", checkpoint, destination, config, logits) | found | {"origin": origin}
        write_json(temporary / hf.RECORD, done)
    return done


def _import(
    progress: Progress,
    source: Path,
    checkpoint: Path,
    dtype: Any,
    rope_scaling: Mapping[str, Any] | None,
    trust_remote_code: bool,
) -> dict[str, float] | None:
    """Converts and compares. On a GPU it returns ``None``: the comparison has to run in a process without CUDA."""
    from solopo_nemo.core import device

    device.prepare_process()
    from solopo_nemo.nemo_model.models import HFImporter

    importer = HFImporter(source.resolve())
    importer.progress = progress
    importer.rope_scaling, importer.trust_remote_code = rope_scaling, trust_remote_code
    importer.apply(checkpoint)
    gc.collect()  # NeMo's trainer and model refer to each other
    if device.cuda():
        return None
    return _compare_import(progress, source, checkpoint, dtype, trust_remote_code)


def _compare_import(
    progress: Progress, source: Path, checkpoint: Path, dtype: Any, trust_remote_code: bool
) -> dict[str, float]:
    from solopo_nemo.nemo_model import verify
    from solopo_nemo.nemo_model.models import load_module, one_rank

    config = hf.read_config(checkpoint / "hf")
    sequences = verify.probes(load_tokenizer(checkpoint / "hf", trust_remote_code), config.vocab_size)
    with one_rank():
        got = verify.megatron_logits(load_module(checkpoint, config, dtype), sequences, progress)
    gc.collect()
    want = verify.transformers_logits(source, config, dtype, sequences, progress, trust_remote_code)
    return verify.compare(got, want, f"import of {source}")


def _export(
    progress: Progress, checkpoint: Path, folder: Path, max_shard_size: str, trust_remote_code: bool
) -> tuple[dict[str, float], Summary]:
    from solopo_nemo.core import device
    from solopo_nemo.nemo_model import verify

    device.prepare_process()
    from solopo_nemo.nemo_model.models import HFExporter, load_module, one_rank

    exporter = HFExporter(checkpoint.resolve())
    exporter.progress = progress
    exporter.max_shard_size, exporter.trust_remote_code = max_shard_size, trust_remote_code
    config, dtype = exporter.description, exporter.dtype
    sequences = verify.probes(load_tokenizer(checkpoint / "hf", trust_remote_code), config.vocab_size)
    with one_rank():
        module = load_module(checkpoint, config, dtype)
        parameters = exporter.write(module, folder)
        got = verify.megatron_logits(module, sequences, progress)
    del module
    gc.collect()
    want = verify.transformers_logits(folder, config, dtype, sequences, progress, trust_remote_code)
    found = {"dtype": str(dtype).removeprefix("torch."), "parameters": parameters}
    return verify.compare(got, want, f"export of {checkpoint}"), found


def _summary(
    began: float, direction: str, source: Path, destination: Path, config: ModelDescription, logits: Mapping[str, float]
) -> Summary:
    return {
        "direction": direction,
        "source": str(source),
        "destination": str(destination),
        "family": config.model_type,
        "window": config.window,
        "logits_difference": logits,
        "seconds": round(time.monotonic() - began, 1),
    }


def _origin(direction: str, source: Path, options: Any) -> str:
    """The SHA-256 of a conversion's input: direction, options, and names, sizes and times of the source files."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    states = [(str(path.relative_to(source)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([direction, str(source.resolve()), options, states], default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


def _already(destination: Path, source: Path, origin: str, overwrite: bool) -> Summary | None:
    """The summary of the same conversion in ``destination``; ``None`` if the destination can be written.

    Raises:
        UserError: the destination is in use.
    """
    if destination.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"{destination}: the destination holds the source; choose another one")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return None
    try:
        done: Summary = json.loads((destination / hf.RECORD).read_text(encoding="utf-8"))
        same = done["origin"] == origin
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{destination}: exists, and is no finished conversion; choose another destination") from None
    if not same and not overwrite:
        raise UserError(f"{destination}: holds another conversion, of {done['source']}; --overwrite replaces it")
    return done if same else None


@contextmanager
def staged(destination: Path, size: int) -> Iterator[Path]:
    """Yields a temporary folder beside ``destination``, which replaces it if the block ends without error.

    Args:
        destination: the folder to write.
        size: bytes that will be written at least.

    Raises:
        UserError: the folder cannot be created, or its disk has less than ``size`` bytes free.
    """
    temporary = destination.with_name(f".{destination.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror})") from None
    try:
        if free < size:
            raise UserError(f"{destination}: needs {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free there")
        yield temporary
        shutil.rmtree(destination, ignore_errors=True)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
