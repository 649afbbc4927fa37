"""What a measurement is made of: specification, memory, model and sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from solopo_nemo.config.schema import load_config
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.triplets import Needs, read_triplets
from studies.benchmarks.material import ids_digest, make_material
from studies.benchmarks.memory import PeakMemory, storage_bytes
from studies.benchmarks.spec import Shape, StepSpec
from studies.benchmarks.step import overrides_of

MIB = 2**20
SMALL = StepSpec("solo_dpo", 24, short=8, response=4, shape=Shape(hidden=16, ffn=32, heads=2, vocabulary=64))


def test_a_specification_survives_json_and_its_key_follows_every_field() -> None:
    spec = StepSpec("long_po", 4096, shape=Shape(layers=3), overrides=("model.logits_chunk_size=64",))
    assert StepSpec.from_json(spec.as_json()) == spec
    keys = {spec.key()} | {
        StepSpec.from_json(spec.as_json() | change).key() for change in ({"long": 1}, {"threads": 1})
    }
    assert len(keys) == 3


def test_the_peak_counts_what_training_allocates_whenever_it_does() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc/self/clear_refs")
    weights, gradients = torch.ones(8 * MIB), torch.zeros(16 * MIB)
    memory = PeakMemory()
    gradients.zero_()
    memory.start([weights], [gradients])
    before = memory.peak()
    torch.ones(32 * MIB).sum()
    assert before == pytest.approx(storage_bytes([gradients]), abs=4 * MIB)
    assert memory.peak() == pytest.approx((16 + 32) * MIB * 4, rel=0.05)


def test_storage_is_counted_once() -> None:
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[10:20], whole.view(10, 10)]) == 400


def test_the_sample_has_the_lengths_and_the_ids_that_the_peer_reads(tmp_path: Path) -> None:
    material = make_material(SMALL, tmp_path)
    needs = Needs(("short_chosen", "short_rejected", "long_chosen"))
    (own,) = TripletEncoder(load_tokenizer(material.hf)).encode(list(read_triplets(material.triplets, needs)), needs)
    ids = json.loads(material.ids.read_text())
    assert {name: len(values) for name, values in own.items()} == {
        "prompt_short": 8,
        "prompt_long": 24,
        "chosen": 4,
        "rejected": 4,
    }
    assert own == ids
    assert material.digests() == {name: ids_digest(values) for name, values in own.items()}
    assert max(i for values in ids.values() for i in values) < SMALL.shape.vocabulary


def test_material_is_made_once_and_its_weights_follow_the_seed(tmp_path: Path) -> None:
    first, again = make_material(SMALL, tmp_path / "a"), make_material(SMALL, tmp_path / "b")
    weights = [(m.hf / "model.safetensors").read_bytes() for m in (first, again)]
    assert weights[0] == weights[1]
    stamp = (first.hf / "model.safetensors").stat().st_mtime_ns
    make_material(SMALL, tmp_path / "a")
    assert (first.hf / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("system", ["solo_dpo", "long_po", "sft"])
def test_the_overrides_make_a_configuration(system: str, tmp_path: Path) -> None:
    spec = StepSpec(system, 24, context=2, context_mode="a2a", recompute="full", data=2)
    config = load_config(system, overrides_of(spec, make_material(SMALL, tmp_path), tmp_path / "out"))
    assert (config.parallel.context, config.model.recompute, config.trainer.global_batch) == (2, "full", 2)
    assert config.optim.lr == config.optim.min_lr == 1e-4
