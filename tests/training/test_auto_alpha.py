"""``objective.alpha=auto``: the rule, and one value at every layout that a resumed run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import inject, rows, run, started

from solopo_nemo.objectives import SequenceScores, build_objective
from solopo_nemo.runtime.errors import RunFault, UserError
from solopo_nemo.training.callbacks.auto_alpha import LEAST, MOST, Balance, Norms, balanced_alpha


def of(rest: float, alignment: float) -> Norms:
    return {"rest": rest, "alignment": alignment}


def test_both_terms_move_a_toy_policy_equally_far() -> None:
    torch.manual_seed(0)
    weights = torch.randn(3, dtype=torch.float64, requires_grad=True)
    features = torch.randn(3, 8, 3, dtype=torch.float64)  # of the three sequences of 8 samples
    names = ("short_chosen", "short_rejected", "long_chosen")
    tokens = torch.full((8,), 4.0)

    def norm(loss_of: str, alpha: float) -> float:
        objective = build_objective("dpo", alpha=alpha)
        policy = {n: SequenceScores(-(x @ weights).square(), tokens) for n, x in zip(names, features, strict=True)}
        reference = {name: policy[name].logp.detach() for name in objective.reference_sequences}
        loss = objective.alignment if loss_of == "alignment" else build_objective("dpo", alpha=0)
        return float(torch.autograd.grad(loss(policy, reference).loss, weights)[0].norm())

    alpha = balanced_alpha([of(norm("rest", 1.0), norm("alignment", 1.0))])
    assert alpha * norm("alignment", 1.0) == pytest.approx(norm("rest", 1.0), rel=0.01)


def test_the_rule() -> None:
    assert balanced_alpha([of(1.0, 4.0), of(2.0, 2.0)]) == 0.5
    assert balanced_alpha([of(1.0, 3.0)]) == 0.333
    assert balanced_alpha([of(1e-9, 1.0)]) == LEAST
    assert balanced_alpha([of(1.0, 1e-9)]) == MOST


@pytest.mark.parametrize(
    ("norms", "error", "said"),
    [
        ([of(1.0, 0.0), of(1.0, 0.0)], UserError, "the alignment has no gradient"),
        ([of(0.0, 1.0)], UserError, "no gradient but the alignment's"),
        ([of(float("inf"), 1.0)], RunFault, "not finite"),
        ([of(1.0, float("nan"))], RunFault, "not finite"),
    ],
)
def test_gradients_that_have_no_ratio(norms: list[Norms], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        balanced_alpha(norms)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_one_alpha_at_every_layout_and_after_a_resume(finished: Path, tmp_path: Path) -> None:
    auto = ["objective.alpha=auto", "evaluation.name=none", "trainer.checkpoint_every=100"]
    alone, split = started(finished, tmp_path / "alone"), started(finished, tmp_path / "split")
    online = ["parallel.pipeline=2", "objective.reference=online", "model.recompute=full"]
    assert "objective.alpha=auto: alpha is" in run(split, *auto, *online).stdout
    measured = 4 * 2  # global batches, terms: they come before the first step
    orders = [inject("signal", rank=0, step=measured + 1)]
    run(alone, *auto, "+plugins=[injected]", expect=75, orders=orders)
    written = (alone / "alpha.json").read_bytes()
    got, want = (Balance(**json.loads((folder / "alpha.json").read_text())) for folder in (split, alone))
    assert len(want.norms) == 4
    for ours, theirs in zip(got.norms, want.norms, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert got.alpha == pytest.approx(want.alpha, rel=1e-2)  # a step of the last digit
    # the checkpoint knows it, whatever has become of the file
    (alone / "alpha.json").unlink()
    run(alone, *auto, "+plugins=[injected]", "parallel.tensor=2", "parallel.sequence=true")
    assert (alone / "alpha.json").read_bytes() == written
    assert [row["step"] for row in rows(alone)] == [1, 2, 3, 4]
    for row in rows(alone):
        assert row["loss"] == pytest.approx(row["loss/po"] + want.alpha * row["loss/align"], rel=1e-6)
