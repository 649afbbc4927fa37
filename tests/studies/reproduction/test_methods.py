"""The rows of the tables: each is a recipe that sees the sequences which the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from solopo_nemo.config.schema import RunConfig, load_config
from studies.reproduction.methods import METHODS
from studies.reproduction.runs import Run

SHORT, LONG = ("short_chosen", "short_rejected"), ("long_chosen", "long_rejected")


def configuration(name: str) -> RunConfig:
    run = Run(METHODS[name], seed=2, overrides=("optim.clip_grad=0.5",), steps=7)
    return load_config(METHODS[name].recipe, run.arguments(Path("start"), Path("pairs.jsonl"), Path("out")))


@pytest.mark.parametrize(
    ("name", "sequences"),
    [
        ("sft-short", SHORT[:1]),
        ("sft-long", LONG[:1]),
        ("short-dpo", SHORT),
        ("long-simpo", LONG),
        ("expand-orpo", LONG),
        ("solo-dpo", (*SHORT, LONG[0])),
        ("solo-orpo-kl", (*SHORT, LONG[0])),
        ("solo-simpo-both", (*SHORT, *LONG)),
        ("longpo", LONG),
    ],
)
def test_a_method_trains_on_its_sequences(name: str, sequences: tuple[str, ...]) -> None:
    config = configuration(name)
    assert set(config.build_objective().sequences) == set(sequences)
    assert (config.trainer.max_steps, config.trainer.seed, config.optim.clip_grad) == (7, 1002, 0.5)


def test_all_methods_compose_and_differ_and_share_a_learning_rate() -> None:
    configurations = {name: configuration(name) for name in METHODS}
    for name, config in configurations.items():
        sequences = config.build_objective().sequences
        longs = sum(sequence.startswith("long") for sequence in sequences)
        assert METHODS[name].sequences == (len(sequences) - longs, longs)
    seen = {repr((config.recipe, config.objective)) + METHODS[name].pairs for name, config in configurations.items()}
    assert len(seen) == len(METHODS)
    assert len({config.optim.lr for config in configurations.values()}) == 1


def test_long_and_expand_long_differ_by_their_pairs_alone() -> None:
    assert METHODS["long-dpo"].overrides == METHODS["expand-dpo"].overrides
    assert (METHODS["long-dpo"].pairs, METHODS["expand-dpo"].pairs) == ("long", "short")
