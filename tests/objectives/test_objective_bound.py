"""The bound that justifies SoLoPO ("the specification", section 4), for every registered objective.

Set SOLOPO_PLUGINS=my_package.my_po to put objectives of your own under it.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solopo_nemo.objectives import (
    DISTANCES,
    DPO,
    IPO,
    SequenceScores,
    SLiC,
    UnalignedObjective,
    available_objectives,
    build_objective,
    objective_class,
    option_fields,
)

FAMILY = [name for name in available_objectives() if not issubclass(objective_class(name), UnalignedObjective)]
rewards = st.floats(-20, 20, allow_nan=False)
scales = st.floats(0.05, 4)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_at_most(left, right):
    assert (left <= right + 1e-10 * (1 + right.abs())).all(), f"{left.tolist()} > {right.tolist()}"


def assert_bound(objective, short_w, short_l, long_w, long_l):
    """Checks both lines of section 4 at one point, from rewards."""
    f, eta, gamma = objective.smoothed_f, objective.eta, objective.target_margin
    short_w, short_l, long_w, long_l = (tensor(reward) for reward in (short_w, short_l, long_w, long_l))
    a, b = short_w - long_w, short_l - long_l
    loss = f(eta * (long_w - long_l - gamma))
    short_term = f(3 * eta * (short_w - short_l - gamma))
    assert_at_most(loss, (short_term + f(-3 * eta * a) + f(3 * eta * b)) / 3)

    def s(u):
        return objective.bound_factor * objective.s(u)

    aligned = s(3 * eta * a.abs()) + s(3 * eta * b.abs())
    assert_at_most(loss, (short_term + aligned) / 3 + 2 * objective.bound_constant / 3)


def assert_dominated(objective, z):
    """Checks ``f(z) <= k * s(|z|) + C``, and that ``s`` increases from 0, as Theorem 2 needs."""
    z = tensor(z)
    assert_at_most(objective.smoothed_f(z), objective.bound_factor * objective.s(z.abs()) + objective.bound_constant)
    assert objective.s(tensor(0.0)) == 0
    assert_at_most(objective.s(z.abs()), objective.s(z.abs() * 1.1))


@st.composite
def objectives(draw, name):
    scaled = {"beta", "gamma", "lambda_"} & set(option_fields(objective_class(name)))
    options = {option: draw(scales) for option in sorted(scaled)}
    return build_objective(name, label_smoothing=draw(st.sampled_from((0.0, 0.1, 0.4))), **options)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=150)
@given(data=st.data(), values=st.tuples(rewards, rewards, rewards, rewards))
def test_long_loss_is_bounded_by_short_loss_and_alignment(name, data, values):
    assert_bound(data.draw(objectives(name)), *values)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=100)
@given(z=st.floats(-60, 60))
@example(z=0.0)
@example(z=-1.0)
def test_constants_dominate_f(name, z):
    for share in (0.0, 0.3):
        assert_dominated(build_objective(name, label_smoothing=share), z)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=60)
@given(
    data=st.data(),
    logps=st.lists(st.floats(-30, -0.01), min_size=4, max_size=4),
    reference=st.lists(st.floats(-30, 0), min_size=2, max_size=2),
)
def test_bound_holds_for_the_losses_that_are_trained(name, data, logps, reference):
    """From log-probabilities through the call: the vanilla long loss against the terms of the SoLoPO loss."""
    objective = data.draw(objectives(name))
    names = ("short_chosen", "short_rejected", "long_chosen", "long_rejected")
    policy = {key: SequenceScores(tensor(logp), tensor(5.0)) for key, logp in zip(names, logps, strict=True)}
    # One reference for either prompt: it cancels in the gaps, which is why only the policy is aligned.
    ref = {key: tensor(reference[key.endswith("rejected")]) for key in names}
    options = {option: getattr(objective, option) for option in option_fields(type(objective))}
    long = build_objective(name, **(options | {"align": "none", "prompt": "long", "nll_weight": 0.0}))
    solo = build_objective(name, **(options | {"align": "both"}))(policy, ref)
    trained = long(policy, ref).metrics

    f, eta, gamma = objective.smoothed_f, objective.eta, objective.target_margin
    trained_f = trained["loss/po"] / objective.po_weight
    torch.testing.assert_close(trained_f, f(eta * (trained["rewards/margin"] - gamma)), rtol=1e-9, atol=1e-12)
    metrics = solo.metrics
    keys = ("rewards/chosen", "rewards/rejected", "rewards/chosen_long", "rewards/rejected_long")
    assert_bound(objective, *(metrics[key].item() for key in keys))
    long_margin = metrics["rewards/chosen_long"] - metrics["rewards/rejected_long"]
    torch.testing.assert_close(trained["rewards/margin"], long_margin, rtol=1e-9, atol=1e-9)
    gaps = [metrics[f"rewards/{y}"] - metrics[f"rewards/{y}_long"] for y in ("chosen", "rejected")]
    aligned = sum(objective.s((eta * gap).abs()) for gap in gaps)
    torch.testing.assert_close(metrics["loss/align"], aligned, rtol=1e-9, atol=1e-9)


class SmallerLogistic(DPO):
    bound_constant: ClassVar[float] = 0.99 * DPO.bound_constant


class SmallerHinge(SLiC):
    bound_constant: ClassVar[float] = 0.99


class SmallerSquare(IPO):
    bound_constant: ClassVar[float] = 1.98


class SmallerFactor(IPO):
    bound_factor: ClassVar[float] = 1.0


class Concave(DPO):
    def f(self, z):
        return -z.square()


@pytest.mark.parametrize("damaged", [SmallerLogistic, SmallerHinge, SmallerSquare, SmallerFactor])
def test_a_damaged_constant_is_caught(damaged):
    with pytest.raises(AssertionError):
        for z in (0.0, -1.0, -5.0):
            assert_dominated(damaged(), z)


@pytest.mark.parametrize("damaged", [SmallerLogistic, SmallerHinge, SmallerSquare, Concave])
def test_the_bound_itself_notices_the_damage(damaged):
    objective = damaged(beta=1.0)
    # Equality for the logistic and the hinge; equality for the square; a point that only a convex f passes.
    points = [(0.0, 0.0, 0.0, 0.0), (-1 / 3, 0.0, -2 / 3, 1 / 3), (0.0, 0.0, -2.0, 1.0)]
    with pytest.raises(AssertionError):
        for point in points:
            assert_bound(objective, *point)


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=200)
@given(a=st.floats(-1e4, 1e4), b=st.floats(-1e4, 1e4), delta=st.floats(1e-2, 1e2))
@example(a=0.5, b=0.0, delta=1.0)
@example(a=1.0, b=-1.0, delta=2.0)
def test_distance_constants(name, a, b, delta):
    distance = DISTANCES[name](delta)
    assert distance.c1 > 0
    assert abs(a - b) <= (distance.c1 * distance(tensor(a), tensor(b)).item() + distance.c2) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(("name", "touching"), [("squared", 0.5), ("huber", 3.0)])
def test_distance_offsets_are_not_larger_than_needed(name, touching):
    distance = DISTANCES[name](3.0)
    bound = distance.c1 * distance(tensor(touching), tensor(0.0)).item() + distance.c2
    assert bound == pytest.approx(touching)
