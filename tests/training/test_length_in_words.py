"""What the log says of a run's length: epochs, samples that are repeated, samples that are never seen."""

from __future__ import annotations

import pytest

from solopo_nemo.config.schema import load_config
from solopo_nemo.training.prepare import length_in_words, total_steps


@pytest.mark.parametrize(
    ("samples", "given", "steps", "words"),
    [
        (128, ["trainer.global_batch=64"], 2, "see 1 epoch of 128 samples"),
        (5000, ["trainer.global_batch=64"], 79, "see 1.011 epochs of 5000 samples: trainer.epochs=1, and 56 samples again"),
        (100, ["trainer.global_batch=64", "trainer.epochs=2"], 4, "2.56 epochs of 100 samples: trainer.epochs=2, and 56"),
        (28, ["trainer.global_batch=64"], 1, "see 2.286 epochs of 28 samples: trainer.epochs=1, and 36 samples again"),
        (28, ["trainer.global_batch=64"], 1, "one step sees a sample 2.29 times: give a trainer.global_batch of at most 28"),
        (100, ["trainer.global_batch=8", "trainer.max_steps=2"], 2, "84 samples are never seen (trainer.max_steps=2)"),
        (8, ["trainer.global_batch=8", "trainer.max_steps=3"], 3, "see 3 epochs of 8 samples"),
    ],
)  # fmt: skip
def test_what_a_run_sees(samples: int, given: list[str], steps: int, words: str) -> None:
    config = load_config("solo_dpo", given)
    text = length_in_words(config, samples)
    assert text.startswith(f"{steps} steps of trainer.global_batch={config.trainer.global_batch}")
    assert (steps, True) == (total_steps(config, samples), words in text), text
    exact = steps * config.trainer.global_batch % samples == 0 and samples >= config.trainer.global_batch
    assert (":" in text) != exact


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_the_reference_scores_what_the_steps_draw(steps: int) -> None:
    from solopo_nemo.training.prepare import seen_samples, shuffled

    config = load_config("solo_dpo", ["trainer.global_batch=8", f"trainer.max_steps={steps}", "trainer.seed=3"])
    drawn = {int(row) for epoch in range(4) for row in shuffled(3, epoch, 100)[: max(0, 8 * steps - 100 * epoch)]}
    assert seen_samples(config, 100).tolist() == sorted(drawn)
    assert len(drawn) == min(100, 8 * steps)
