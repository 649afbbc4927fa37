"""The short-to-long alignment: when it vanishes, and through which sides its gradient flows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from solopo_nemo.objectives import DISTANCES, SequenceScores, build_objective

FAMILY = ("dpo", "simpo", "orpo", "ipo", "slic", "exponential")


def vanilla(name, policy, reference):
    """The vanilla objectives with their default options, in plain fp32 torch."""
    w, l = policy["short_chosen"], policy["short_rejected"]  # noqa: E741
    rw, rl = reference["short_chosen"], reference["short_rejected"]
    if name == "dpo":
        return -F.logsigmoid(0.1 * (w.logp - rw) - 0.1 * (l.logp - rl))
    if name == "simpo":
        return -F.logsigmoid(2.0 * (w.logp / w.tokens) - 2.0 * (l.logp / l.tokens) - 1.0)
    if name == "ipo":
        return (0.1 * ((w.logp - rw) - (l.logp - rl)) - 1) ** 2
    if name == "slic":
        return F.relu(1 - (w.logp - l.logp))
    return torch.exp(-(0.1 * w.logp - 0.1 * l.logp))


def gradients(loss, policy, names):
    return torch.autograd.grad(loss, [policy[name].logp for name in names], retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("off", [{"alpha": 0}, {"alpha": 0.0, "align": "both"}, {"align": "none", "alpha": 5.0}])
@pytest.mark.parametrize("name", FAMILY)
def test_switched_off_is_the_vanilla_objective_bit_for_bit(batch, name, off):
    policy, reference = batch(n=64, dtype=torch.float32)
    short = {key: policy[key] for key in ("short_chosen", "short_rejected")}
    objective = build_objective(name, **off)
    assert objective.sequences == tuple(short)
    out = objective(short, reference)
    assert not [key for key in out.metrics if "long" in key or "align" in key]
    if name != "orpo":  # its log-odds have no one-line form with the same rounding
        wanted = vanilla(name, policy, reference)
        assert torch.equal(out.per_sample, wanted)
        assert torch.equal(out.loss, wanted.mean())
        for got, expected in zip(
            gradients(out.loss, policy, short), gradients(wanted.mean(), policy, short), strict=True
        ):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("options", [{"distance": name} for name in DISTANCES] + [{"align_on": "logp"}])
@pytest.mark.parametrize("name", FAMILY)
def test_equal_prompts_have_no_gap_and_no_alignment_gradient(batch, name, options):
    policy, reference = batch(n=64, dtype=torch.float32)
    for answer in ("chosen", "rejected"):
        short = policy[f"short_{answer}"]
        policy[f"long_{answer}"] = SequenceScores(short.logp.detach().clone().requires_grad_(), short.tokens)
    out = build_objective(name, align="both", **options)(policy, reference)
    alone = build_objective(name, align="none")(policy, reference)

    assert out.metrics["loss/align"] == 0
    assert out.metrics["align/gap"] == 0
    assert torch.equal(out.per_sample, alone.per_sample)
    short, long = ("short_chosen", "short_rejected"), ("long_chosen", "long_rejected")
    for gradient in gradients(out.loss, policy, long):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    for got, expected in zip(gradients(out.loss, policy, short), gradients(alone.loss, policy, short), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", FAMILY)
def test_gradient_flows_through_both_sides_and_detached_only_through_the_long_one(batch, name):
    policy, reference = batch()
    names = ("short_chosen", "short_rejected", "long_chosen")
    both = gradients(build_objective(name)(policy, reference).loss, policy, names)
    detached_out = build_objective(name, detach_short=True)(policy, reference)
    detached = gradients(detached_out.loss, policy, names)
    alone = gradients(build_objective(name, align="none")(policy, reference).loss, policy, names)

    assert torch.equal(detached_out.loss, build_objective(name)(policy, reference).loss)
    assert torch.equal(detached[0], alone[0])
    assert torch.equal(detached[1], alone[1])
    assert torch.equal(detached[2], both[2])
    assert (detached[2] != 0).all()
    assert (both[0] != alone[0]).all()
    assert alone[2] is None


@pytest.mark.parametrize("distance", ["abs", "squared", "huber"])
@pytest.mark.parametrize("align", ["chosen", "both"])
@pytest.mark.parametrize("name", FAMILY)
def test_with_the_higher_side_held_the_alignment_lifts_the_lower_one_and_pulls_nothing_down(
    batch, name, align, distance
):
    policy, reference = batch(n=64)
    answers = ("chosen", "rejected") if align == "both" else ("chosen",)
    names = tuple(f"{prompt}_{answer}" for prompt in ("short", "long") for answer in answers)
    free, held = (build_objective(name, align=align, distance=distance, detach_higher=flag) for flag in (False, True))
    assert torch.equal(held(policy, reference).per_sample, free(policy, reference).per_sample)
    moved = dict(zip(names, gradients(held.alignment(policy, reference).loss, policy, names), strict=True))
    pulled = dict(zip(names, gradients(free.alignment(policy, reference).loss, policy, names), strict=True))
    for answer in answers:
        # the rewards grow with the log-probability of a sequence of one length
        lower = policy[f"short_{answer}"].logp < policy[f"long_{answer}"].logp
        assert lower.any() and not lower.all()
        for side, moves in (("short", lower), ("long", ~lower)):
            got, whole = moved[f"{side}_{answer}"], pulled[f"{side}_{answer}"]
            assert torch.equal(got, torch.where(moves, whole, torch.zeros_like(whole)))
            assert (got <= 0).all()  # gradient descent moves it up


@pytest.mark.parametrize("name", FAMILY)
def test_with_both_held_only_a_lower_long_side_moves(batch, name):
    policy, reference = batch(n=16)
    objective = build_objective(name, detach_short=True, detach_higher=True)
    short, long = gradients(objective.alignment(policy, reference).loss, policy, ("short_chosen", "long_chosen"))
    assert short is None or not short.any()
    assert torch.equal(long != 0, policy["long_chosen"].logp < policy["short_chosen"].logp)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_a_loss_is_its_rest_and_alpha_times_its_alignment(batch, name, detach):
    policy, reference = batch()
    names = ("short_chosen", "short_rejected", "long_chosen")
    objective = build_objective(name, alpha=0.7, detach_short=detach)
    whole, alignment = objective(policy, reference), objective.alignment(policy, reference)
    rest = replace(objective, alpha=0.0)(policy, reference)
    torch.testing.assert_close(whole.per_sample, rest.per_sample + 0.7 * alignment.per_sample)
    assert alignment.metrics.keys() == whole.metrics.keys()
    assert alignment.metrics["loss"] == whole.metrics["loss/align"]
    parts = [gradients(out.loss, policy, names) for out in (whole, rest, alignment)]
    for got, *terms in zip(*parts, strict=True):
        first, second = (torch.zeros(5, dtype=torch.float64) if term is None else term for term in terms)
        torch.testing.assert_close(got, first + 0.7 * second)


def test_an_objective_that_aligns_nothing_has_no_alignment(batch):
    policy, reference = batch()
    with pytest.raises(ValueError, match="aligns nothing"):
        build_objective("dpo", align="none").alignment(policy, reference)


def test_dpo_alignment_gradient_by_hand(batch):
    policy, reference = batch(n=4)
    names = ("short_chosen", "long_chosen")
    both = gradients(build_objective("dpo", beta=0.2, alpha=3)(policy, reference).loss, policy, names)
    alone = gradients(build_objective("dpo", beta=0.2, align="none")(policy, reference).loss, policy, names)
    pull = 3 * 0.2 / 4 * torch.sign(policy["short_chosen"].logp - policy["long_chosen"].logp).detach()
    torch.testing.assert_close(both[0] - alone[0], pull)
    torch.testing.assert_close(both[1], -pull)


def test_the_reference_gets_no_gradient(batch):
    policy, reference = batch()
    leaves = {name: logp.requires_grad_() for name, logp in reference.items()}
    out = build_objective("dpo", alignment_reference="full")(policy, leaves)
    assert torch.autograd.grad(out.loss, list(leaves.values()), allow_unused=True) == (None,) * 4
