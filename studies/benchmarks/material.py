"""Model and sample of a measurement: random with a fixed seed, and the same files for all systems."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solopo_nemo.runtime.output import atomic_text
from studies.benchmarks.spec import Shape, StepSpec, digest

SEED = 20250516
_PAD, _END, _WORDS = "<pad>", "</s>", 2
_UNKNOWN = f"w{_WORDS}"  # not the padding token: its embedding is zero, so a text of it has zero logits


@dataclass(frozen=True)
class Material:
    """Files of a measurement.

    Attributes:
        hf: model as a Hugging Face folder, with a tokenizer of one word per id.
        checkpoint: the same weights as a NeMo checkpoint, created on first use.
        triplets: sample as a triplet file.
        ids: the same sample as JSON token ids: ``prompt_short``, ``prompt_long``, ``chosen``, ``rejected``.
    """

    hf: Path
    checkpoint: Path
    triplets: Path
    ids: Path

    def digests(self) -> dict[str, str]:
        """Hash of the int64 token ids of each field."""
        values = json.loads(self.ids.read_text())
        return {name: ids_digest(ids) for name, ids in values.items()}


def ids_digest(ids: Any) -> str:
    """Hash of token ids; the peer computes the same hash."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()


def make_material(spec: StepSpec, work: Path) -> Material:
    """Write the missing files.

    Args:
        spec: specification with shape and lengths.
        work: folder of all measurements.
    """
    model = work / "models" / digest([dataclasses.asdict(spec.shape), _UNKNOWN])
    sample = work / "samples" / digest([spec.shape.vocabulary, spec.short, spec.long, spec.response])
    material = Material(model / "hf", model / "nemo", sample / "triplets.jsonl", sample / "ids.json")
    if not material.hf.is_dir():
        _write_model(spec.shape, material.hf)
    if not material.triplets.is_file():
        _write_sample(spec, material)
    return material


def make_checkpoint(material: Material) -> None:
    """Convert the Hugging Face folder to a NeMo checkpoint unless that exists."""
    from solopo_nemo.families.hf import is_checkpoint
    from solopo_nemo.nemo_model.convert import import_hf

    if not is_checkpoint(material.checkpoint):
        import_hf(material.hf, material.checkpoint)


def _write_model(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    temporary = folder.with_name(".hf.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen2ForCausalLM(Qwen2Config(**shape.hf_config(), rope_theta=1e6, pad_token_id=0, eos_token_id=1))
    model.save_pretrained(temporary)
    _write_tokenizer(shape.vocabulary, temporary)
    temporary.rename(folder)


def _write_tokenizer(vocabulary: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {_PAD: 0, _END: 1} | {f"w{i}": i for i in range(_WORDS, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END).save_pretrained(folder)


def _write_sample(spec: StepSpec, material: Material) -> None:
    draw = np.random.default_rng(SEED)
    lengths = {"prompt_short": spec.short, "prompt_long": spec.long}
    lengths |= dict.fromkeys(("chosen", "rejected"), spec.response - 1)
    ids = {name: draw.integers(_WORDS, spec.shape.vocabulary, count).tolist() for name, count in lengths.items()}
    row = {"id": "sample"} | {name: " ".join(f"w{i}" for i in values) for name, values in ids.items()}
    for name in ("chosen", "rejected"):
        row[name] = " " + row[name]  # separates the text from the last word of the prompt
        ids[name].append(1)
    with atomic_text(material.ids) as stream:
        stream.write(json.dumps(ids))
    with atomic_text(material.triplets) as stream:
        stream.write(json.dumps(row) + "\n")
