"""Precision, extreme log-probabilities and the mean over samples."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solopo_nemo.objectives import DISTANCES, SEQUENCES, SequenceScores, build_objective, log1mexp, log_odds

EXTREMES = (0.0, -1e-7, -1.0, -1e4)
BUILT_IN = ("dpo", "simpo", "orpo", "ipo", "slic", "longpo", "sft")
OPTIONS = [{"align": "both", "distance": name} for name in DISTANCES] + [{"align": "both", "align_on": "logp"}]
RUNS = [(name, options) for name in BUILT_IN[:5] for options in OPTIONS] + [("longpo", {}), ("sft", {})]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 700])
@pytest.mark.parametrize(("name", "options"), RUNS, ids=[f"{n}-{'-'.join(o.values())}" for n, o in RUNS])
def test_extreme_log_probabilities_stay_finite(name, options, tokens, dtype):
    """Every combination of extremes over the four sequences, one sample each."""
    columns = torch.tensor(list(itertools.product(EXTREMES, repeat=4)), dtype=dtype).T
    n = columns.shape[1]
    policy = {
        key: SequenceScores(column.clone().requires_grad_(), torch.full((n,), tokens))
        for key, column in zip(SEQUENCES, columns, strict=True)
    }
    reference = {key: column.flip(0) for key, column in zip(SEQUENCES, columns, strict=True)}
    objective = build_objective(name, **options)
    out = objective(policy, reference)
    out.loss.backward()

    computed = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.loss.dtype == out.per_sample.dtype == computed
    assert out.per_sample.isfinite().all()
    assert all(value.isfinite() for value in out.metrics.values())
    for key in objective.sequences:
        assert policy[key].logp.grad is not None
        assert policy[key].logp.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BUILT_IN)
def test_half_precision_and_autocast_compute_in_fp32(batch, name, dtype):
    policy, reference = batch(n=32, dtype=dtype)
    exact = {key: SequenceScores(scores.logp.float(), scores.tokens) for key, scores in policy.items()}
    wanted = build_objective(name)(exact, {key: value.float() for key, value in reference.items()})
    assert torch.equal(build_objective(name)(policy, reference).per_sample, wanted.per_sample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build_objective(name)(policy, reference).per_sample, wanted.per_sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_against_fifty_digits(dtype):
    eps = torch.finfo(dtype).eps
    a = -torch.logspace(math.log10(2 * eps), 1.9, 300, dtype=dtype)
    with localcontext() as context:
        context.prec = 50
        exact = [float((1 - Decimal(value).exp()).ln()) for value in a.tolist()]
    torch.testing.assert_close(log1mexp(a), torch.tensor(exact, dtype=dtype), rtol=4 * eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 1e-6, -1e-30])
def test_log1mexp_at_zero_is_clamped(dtype, start):
    a = torch.tensor([start], dtype=dtype, requires_grad=True)
    value = log1mexp(a)
    assert value.item() == pytest.approx(math.log(torch.finfo(dtype).eps), rel=1e-5)
    value.backward()
    assert a.grad.item() == 0.0


@settings(max_examples=100)
@given(p=st.floats(1e-6, 1 - 1e-6))
def test_log_odds_of_a_probability(p):
    value = log_odds(torch.tensor(math.log(p), dtype=torch.float64)).item()
    assert value == pytest.approx(math.log(p / (1 - p)), rel=1e-6, abs=1e-9)


def test_weights_are_those_of_means(batch):
    policy, reference = batch(n=3)
    objective = build_objective("dpo", nll_weight=0.1)
    plain = [
        objective({key: SequenceScores(s.logp[i : i + 1], s.tokens[i : i + 1]) for key, s in policy.items()},
                  {key: logp[i : i + 1] for key, logp in reference.items()})
        for i in range(3)
    ]  # fmt: skip
    weighted = objective(policy, reference, torch.tensor([1.0, 0.5, 0.5]))
    for key, value in weighted.metrics.items():
        own = [out.metrics[key] for out in plain]
        torch.testing.assert_close(value, (own[0] + 0.5 * own[1] + 0.5 * own[2]) / 2, msg=key)
    assert weighted.loss == weighted.metrics["loss"]


@pytest.mark.parametrize(("name", "options"), RUNS, ids=[f"{n}-{'-'.join(o.values())}" for n, o in RUNS])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_mean_over_equal_micro_batches_is_that_of_the_batch(batch, name, options, size):
    policy, reference = batch(n=12)
    objective = build_objective(name, **options)
    whole = objective(policy, reference)
    parts = [
        objective(
            {key: SequenceScores(s.logp[i : i + size], s.tokens[i : i + size]) for key, s in policy.items()},
            {key: logp[i : i + size] for key, logp in reference.items()},
        )
        for i in range(0, 12, size)
    ]
    torch.testing.assert_close(torch.cat([part.per_sample for part in parts]), whole.per_sample, rtol=0, atol=0)
    torch.testing.assert_close(torch.stack([part.loss for part in parts]).mean(), whole.loss)
    for key, value in whole.metrics.items():
        torch.testing.assert_close(torch.stack([part.metrics[key] for part in parts]).mean(), value)

    leaves = [policy[key].logp for key in objective.sequences]
    together = torch.autograd.grad(whole.loss, leaves)
    split = torch.autograd.grad(torch.stack([part.loss for part in parts]).mean(), leaves)
    for one, other in zip(together, split, strict=True):
        torch.testing.assert_close(one, other)
