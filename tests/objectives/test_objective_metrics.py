"""The metrics: which keys, which values, and that they are plain means."""

from __future__ import annotations

import pytest
import torch

from solopo_nemo.objectives import SequenceScores, build_objective

PAIR = {"loss", "loss/po", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"}
LOGPS = {"logps/chosen", "logps/rejected"}
ALIGNED = {"loss/align", "align/gap", "align/signed_gap", "rewards/chosen_long", "logps/chosen_long"}


@pytest.mark.parametrize(
    ("name", "options", "keys"),
    [
        ("dpo", {}, PAIR | LOGPS | ALIGNED),
        ("dpo", {"align": "both"}, PAIR | LOGPS | ALIGNED | {"rewards/rejected_long"}),
        ("dpo", {"align": "none", "nll_weight": 0.2}, PAIR | LOGPS | {"loss/nll"}),
        ("orpo", {}, PAIR | LOGPS | ALIGNED | {"loss/nll"}),
        ("orpo", {"nll_weight": 0.0}, PAIR | LOGPS | ALIGNED),
        ("simpo", {"align": "none", "prompt": "long"}, PAIR | LOGPS),
        ("longpo", {}, PAIR | LOGPS | {"loss/nll"}),
        ("sft", {}, {"loss", "loss/nll", "logps/chosen"}),
    ],
)
def test_keys(batch, name, options, keys):
    policy, reference = batch()
    out = build_objective(name, **options)(policy, reference)
    assert set(out.metrics) == keys
    for value in out.metrics.values():
        assert value.shape == ()
        assert value.is_floating_point()
        assert not value.requires_grad


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpo", {"alpha": 2.5, "nll_weight": 0.3}),
        ("orpo", {"lambda_": 0.4, "alpha": 0.5, "align": "both"}),
        ("slic", {"nll_weight": 0.1}),
        ("longpo", {"nll_weight": 0.2}),
        ("ipo", {"align": "none"}),
    ],
)
def test_loss_is_the_weighted_sum_of_its_parts(batch, name, options):
    policy, reference = batch()
    objective = build_objective(name, **options)
    m = objective(policy, reference).metrics
    total = m["loss/po"] + objective.alpha * m.get("loss/align", 0) + objective.nll_weight * m.get("loss/nll", 0)
    torch.testing.assert_close(m["loss"], total)


def scores(*logp):
    return SequenceScores(torch.tensor(logp), torch.tensor([2, 4]))


POLICY = {
    "short_chosen": scores(-2.0, -8.0),
    "short_rejected": scores(-4.0, -6.0),
    "long_chosen": scores(-3.0, -5.0),
    "long_rejected": scores(-10.0, -6.5),
}
REFERENCE = {
    "short_chosen": torch.tensor([-3.0, -7.0]),
    "short_rejected": torch.tensor([-3.0, -7.0]),
    "long_chosen": torch.tensor([-1.0, -1.0]),
    "long_rejected": torch.tensor([-1.0, -1.0]),
}


def values(objective):
    return {key: round(value.item(), 5) for key, value in objective(POLICY, REFERENCE).metrics.items()}


def test_values_of_dpo_by_hand():
    m = values(build_objective("dpo", beta=0.5, align="both"))
    assert m["rewards/chosen"] == 0.0  # 0.5 * (1, -1)
    assert m["rewards/rejected"] == 0.0  # 0.5 * (-1, 1)
    assert m["rewards/margin"] == 0.0  # (1, -1)
    assert m["rewards/accuracy"] == 0.5
    assert m["rewards/chosen_long"] == 0.5  # 0.5 * (0, 2): against the reference on the short prompt
    assert m["rewards/rejected_long"] == -1.625  # 0.5 * (-7, 0.5)
    assert m["align/gap"] == pytest.approx(0.5 * (1 + 3 + 6 + 0.5) / 4, abs=1e-5)
    assert m["align/signed_gap"] == pytest.approx(0.5 * (1 - 3 + 6 + 0.5) / 4, abs=1e-5)
    assert m["loss/align"] == pytest.approx(0.5 * (1 + 3 + 6 + 0.5) / 2, abs=1e-5)
    assert m["logps/chosen"] == -5.0
    assert m["logps/rejected"] == -5.0
    assert m["logps/chosen_long"] == -4.0


def test_long_reward_against_the_long_reference_where_it_is_scored():
    m = values(build_objective("dpo", beta=0.5, alignment_reference="full"))
    assert m["rewards/chosen_long"] == -1.5  # 0.5 * (-2, -4)


def test_values_on_the_long_prompt():
    m = values(build_objective("slic", align="none", prompt="long"))
    assert m["rewards/chosen"] == m["logps/chosen"] == -4.0
    assert m["rewards/rejected"] == -8.25
    assert m["rewards/accuracy"] == 1.0
    m = values(build_objective("longpo", beta=1.0))
    assert m["rewards/chosen"] == 1.0  # (0, 2)
    assert m["loss/nll"] == 1.375  # (3/2, 5/4)


def test_gap_of_solo_kl_is_in_nats():
    m = values(build_objective("simpo", align_on="logp"))
    assert m["align/gap"] == m["loss/align"] == 2.0
    assert m["align/signed_gap"] == -1.0


def test_metrics_do_not_follow_the_training(batch):
    policy, reference = batch()
    out = build_objective("dpo")(policy, reference)
    assert out.loss.requires_grad
    assert out.per_sample.requires_grad
    assert out.metrics["loss"] == out.loss
