"""The imported Megatron models compute what a plain decoder computes with the values that the files mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_models
import plain_decoder
import pytest
import torch
from hf_models import CASES, IDS
from true_values import true_values
from zygote import forking

from solopo_nemo.runtime.isolated import run_isolated

TOLERANCE = 2e-5
"""Largest difference of two logits in fp32, as a part of the largest logit."""
Found = tuple[Path, dict[str, list[torch.Tensor]]]


def difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    largest = max(float(x.abs().max()) for x in want)
    return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True)) / largest


def plain_logits(folder: Path, config: dict[str, Any], five: bool) -> list[torch.Tensor]:
    weights = plain_decoder.weights_of(folder)
    values, _ = true_values(config, five)
    return [plain_decoder.logits(weights, values, ids.tolist()) for ids in IDS]


@pytest.fixture(scope="module")
@forking()
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("models")
    return root, run_isolated("the imports", hf_models.megatron_logits, root, hf_models.versions(root))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_megatron_computes_the_true_values(name: str, found: Found) -> None:
    root, logits = found
    original = json.loads((root / name / "config.json").read_text())
    want = plain_logits(root / name, original, False)
    for version, five in ((name, False), (f"{name}_5", True)):
        config = json.loads((root / version / "config.json").read_text())
        assert ("rope_parameters" in config) is five
        assert difference(plain_logits(root / version, config, five), want) == 0
        assert difference(logits[version], want) < TOLERANCE, version
    changed = original | CASES[name].wrong
    assert difference(plain_logits(root / name, changed, False), want) > 100 * TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_the_plain_decoder_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    hf_models.make(CASES[name], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    want = hf_models.transformers_logits(tmp_path).split([len(ids) for ids in IDS])
    assert difference(plain_logits(tmp_path, config, False), list(want)) < TOLERANCE
