"""Every objective and variant against the formula of the specification, written out in plain Python floats."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from solopo_nemo.objectives import SEQUENCES, build_objective

SHORT_PAIR = ("short_chosen", "short_rejected")
LONG_PAIR = ("long_chosen", "long_rejected")
CHOSEN_ONLY = (*SHORT_PAIR, "long_chosen")
BOTH = (*SHORT_PAIR, *LONG_PAIR)


def logistic(z):
    return math.log(1 + math.exp(-z))


def logodds(avg):
    return math.log(math.exp(avg) / (1 - math.exp(avg)))


def avg(v, name):
    return v.logp[name] / v.tokens[name]


def dpo(v, beta, prompt="short", reference="short"):
    r_w = v.logp[f"{prompt}_chosen"] - v.ref[f"{reference}_chosen"]
    r_l = v.logp[f"{prompt}_rejected"] - v.ref[f"{reference}_rejected"]
    return logistic(beta * (r_w - r_l))


def simpo(v, beta, gamma, prompt="short"):
    return logistic(beta * avg(v, f"{prompt}_chosen") - beta * avg(v, f"{prompt}_rejected") - gamma)


def odds_ratio(v, prompt="short"):
    return logistic(logodds(avg(v, f"{prompt}_chosen")) - logodds(avg(v, f"{prompt}_rejected")))


def ipo(v, beta, prompt="short"):
    r_w = v.logp[f"{prompt}_chosen"] - v.ref[f"{prompt}_chosen"]
    r_l = v.logp[f"{prompt}_rejected"] - v.ref[f"{prompt}_rejected"]
    return (beta * (r_w - r_l) - 1) ** 2


def slic(v, beta, prompt="short"):
    return max(0.0, 1 - beta * (v.logp[f"{prompt}_chosen"] - v.logp[f"{prompt}_rejected"]))


def nll(v, prompt="short"):
    return -avg(v, f"{prompt}_chosen")


def logp_gap(v, answer="chosen"):
    return v.logp[f"short_{answer}"] - v.logp[f"long_{answer}"]


def avg_gap(v, answer="chosen"):
    return avg(v, f"short_{answer}") - avg(v, f"long_{answer}")


def odds_gap(v, answer="chosen"):
    return logodds(avg(v, f"short_{answer}")) - logodds(avg(v, f"long_{answer}"))


def reward_gap(v):
    return logp_gap(v) - (v.ref["short_chosen"] - v.ref["long_chosen"])


def huber(u, delta):
    return u * u / 2 if abs(u) <= delta else delta * (abs(u) - delta / 2)


def swapped(v):
    """A sample whose answers have changed places."""
    other = {"short_chosen": "short_rejected", "short_rejected": "short_chosen"}
    parts = {"logp": v.logp, "tokens": v.tokens, "ref": v.ref}
    return SimpleNamespace(
        **{part: {key: values[name] for key, name in other.items()} for part, values in parts.items()}
    )


NONE = {"align": "none"}
LONG = {"align": "none", "prompt": "long"}
SOLO_KL = {"align_on": "logp"}

# name, options, sequences of the policy, sequences of the reference, loss of one sample
CASES = {
    # SoLo-PO, chosen-only
    "dpo": ("dpo", {}, CHOSEN_ONLY, SHORT_PAIR, lambda v: dpo(v, 0.1) + 0.1 * abs(logp_gap(v))),
    "simpo": ("simpo", {}, CHOSEN_ONLY, (), lambda v: simpo(v, 2.0, 1.0) + 2.0 * abs(avg_gap(v))),
    "orpo": ("orpo", {}, CHOSEN_ONLY, (), lambda v: nll(v) + 0.1 * odds_ratio(v) + abs(odds_gap(v))),
    "ipo": ("ipo", {}, CHOSEN_ONLY, SHORT_PAIR, lambda v: ipo(v, 0.1) + (0.1 * logp_gap(v)) ** 2),
    "slic": ("slic", {}, CHOSEN_ONLY, (), lambda v: slic(v, 1.0) + abs(logp_gap(v))),
    # other values of the options
    "dpo-options": (
        "dpo",
        {"beta": 0.3, "alpha": 0.7, "nll_weight": 0.2},
        CHOSEN_ONLY,
        SHORT_PAIR,
        lambda v: dpo(v, 0.3) + 0.7 * 0.3 * abs(logp_gap(v)) + 0.2 * nll(v),
    ),
    "simpo-options": (
        "simpo",
        {"beta": 2.5, "gamma": 0.3, "alpha": 4},
        CHOSEN_ONLY,
        (),
        lambda v: simpo(v, 2.5, 0.3) + 4 * 2.5 * abs(avg_gap(v)),
    ),
    "orpo-options": (
        "orpo",
        {"lambda_": 0.5, "alpha": 4.0, "nll_weight": 0.3},
        CHOSEN_ONLY,
        (),
        lambda v: 0.3 * nll(v) + 0.5 * odds_ratio(v) + 4 * abs(odds_gap(v)),
    ),
    "ipo-options": (
        "ipo",
        {"beta": 0.4, "alpha": 2.0},
        CHOSEN_ONLY,
        SHORT_PAIR,
        lambda v: ipo(v, 0.4) + 2 * (0.4 * logp_gap(v)) ** 2,
    ),
    "slic-options": (
        "slic",
        {"beta": 0.2, "alpha": 0.5, "nll_weight": 0.1},
        CHOSEN_ONLY,
        (),
        lambda v: slic(v, 0.2) + 0.5 * 0.2 * abs(logp_gap(v)) + 0.1 * nll(v),
    ),
    # swapped labels: the loss of the pair in either order
    "dpo-smoothed": (
        "dpo",
        {"label_smoothing": 0.2, **NONE},
        SHORT_PAIR,
        SHORT_PAIR,
        lambda v: 0.8 * dpo(v, 0.1) + 0.2 * dpo(swapped(v), 0.1),
    ),
    "simpo-smoothed": (
        "simpo",
        {"label_smoothing": 0.2, "gamma": 0.0, **NONE},
        SHORT_PAIR,
        (),
        lambda v: 0.8 * simpo(v, 2.0, 0.0) + 0.2 * simpo(swapped(v), 2.0, 0.0),
    ),
    "orpo-smoothed": (
        "orpo",
        {"label_smoothing": 0.2, **NONE},
        SHORT_PAIR,
        (),
        lambda v: nll(v) + 0.1 * (0.8 * odds_ratio(v) + 0.2 * odds_ratio(swapped(v))),
    ),
    "ipo-smoothed": (
        "ipo",
        {"label_smoothing": 0.2, **NONE},
        SHORT_PAIR,
        SHORT_PAIR,
        lambda v: 0.8 * ipo(v, 0.1) + 0.2 * ipo(swapped(v), 0.1),
    ),
    "slic-smoothed": (
        "slic",
        {"label_smoothing": 0.2, **NONE},
        SHORT_PAIR,
        (),
        lambda v: 0.8 * slic(v, 1.0) + 0.2 * slic(swapped(v), 1.0),
    ),
    # SoLo-PO, both
    "dpo-both": (
        "dpo",
        {"align": "both"},
        BOTH,
        SHORT_PAIR,
        lambda v: dpo(v, 0.1) + 0.1 * (abs(logp_gap(v)) + abs(logp_gap(v, "rejected"))),
    ),
    "orpo-both": (
        "orpo",
        {"align": "both"},
        BOTH,
        (),
        lambda v: nll(v) + 0.1 * odds_ratio(v) + abs(odds_gap(v)) + abs(odds_gap(v, "rejected")),
    ),
    "ipo-both": (
        "ipo",
        {"align": "both"},
        BOTH,
        SHORT_PAIR,
        lambda v: ipo(v, 0.1) + (0.1 * logp_gap(v)) ** 2 + (0.1 * logp_gap(v, "rejected")) ** 2,
    ),
    # SoLo-KL: the absolute value of the raw difference for every objective, IPO included
    "dpo-kl": ("dpo", SOLO_KL, CHOSEN_ONLY, SHORT_PAIR, lambda v: dpo(v, 0.1) + abs(logp_gap(v))),
    "simpo-kl": ("simpo", SOLO_KL, CHOSEN_ONLY, (), lambda v: simpo(v, 2.0, 1.0) + abs(logp_gap(v))),
    "orpo-kl": ("orpo", SOLO_KL, CHOSEN_ONLY, (), lambda v: nll(v) + 0.1 * odds_ratio(v) + abs(logp_gap(v))),
    "ipo-kl": ("ipo", SOLO_KL, CHOSEN_ONLY, SHORT_PAIR, lambda v: ipo(v, 0.1) + abs(logp_gap(v))),
    "slic-kl": ("slic", SOLO_KL, CHOSEN_ONLY, (), lambda v: slic(v, 1.0) + abs(logp_gap(v))),
    # generalized distances
    "dpo-squared": (
        "dpo",
        {"distance": "squared"},
        CHOSEN_ONLY,
        SHORT_PAIR,
        lambda v: dpo(v, 0.1) + (0.1 * logp_gap(v)) ** 2,
    ),
    "slic-huber": (
        "slic",
        {"distance": "huber", "huber_delta": 2.0},
        CHOSEN_ONLY,
        (),
        lambda v: slic(v, 1.0) + huber(logp_gap(v), 2.0),
    ),
    "ipo-huber": (
        "ipo",
        {"distance": "huber", "huber_delta": 0.5},
        CHOSEN_ONLY,
        SHORT_PAIR,
        lambda v: ipo(v, 0.1) + huber(0.1 * logp_gap(v), 0.5) ** 2,
    ),
    # the reference in the alignment
    "dpo-full": (
        "dpo",
        {"alignment_reference": "full"},
        CHOSEN_ONLY,
        CHOSEN_ONLY,
        lambda v: dpo(v, 0.1) + 0.1 * abs(reward_gap(v)),
    ),
    "ipo-full": (
        "ipo",
        {"alignment_reference": "full"},
        CHOSEN_ONLY,
        CHOSEN_ONLY,
        lambda v: ipo(v, 0.1) + (0.1 * reward_gap(v)) ** 2,
    ),
    # Short-PO
    "short-dpo": ("dpo", NONE, SHORT_PAIR, SHORT_PAIR, lambda v: dpo(v, 0.1)),
    "short-simpo": ("simpo", NONE, SHORT_PAIR, (), lambda v: simpo(v, 2.0, 1.0)),
    "short-orpo": ("orpo", NONE, SHORT_PAIR, (), lambda v: nll(v) + 0.1 * odds_ratio(v)),
    "short-ipo": ("ipo", NONE, SHORT_PAIR, SHORT_PAIR, lambda v: ipo(v, 0.1)),
    "short-slic": ("slic", NONE, SHORT_PAIR, (), lambda v: slic(v, 1.0)),
    # Long-PO and Expand-Long-PO
    "long-dpo": ("dpo", LONG, LONG_PAIR, LONG_PAIR, lambda v: dpo(v, 0.1, "long", "long")),
    "long-simpo": ("simpo", LONG, LONG_PAIR, (), lambda v: simpo(v, 2.0, 1.0, "long")),
    "long-orpo": ("orpo", LONG, LONG_PAIR, (), lambda v: nll(v, "long") + 0.1 * odds_ratio(v, "long")),
    "long-ipo": ("ipo", LONG, LONG_PAIR, LONG_PAIR, lambda v: ipo(v, 0.1, "long")),
    "long-slic": ("slic", {"prompt": "long", "alpha": 0}, LONG_PAIR, (), lambda v: slic(v, 1.0, "long")),
    # LongPO and SFT
    "longpo": ("longpo", {}, LONG_PAIR, SHORT_PAIR, lambda v: dpo(v, 0.1, "long", "short") + nll(v, "long")),
    "longpo-options": (
        "longpo",
        {"beta": 0.5, "nll_weight": 0.01},
        LONG_PAIR,
        SHORT_PAIR,
        lambda v: dpo(v, 0.5, "long", "short") + 0.01 * nll(v, "long"),
    ),
    "sft-short": ("sft", {}, ("short_chosen",), (), nll),
    "sft-long": ("sft", {"prompt": "long"}, ("long_chosen",), (), lambda v: nll(v, "long")),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_formula(batch, case):
    name, options, sequences, reference_sequences, expected = CASES[case]
    objective = build_objective(name, **options)
    assert objective.sequences == sequences
    assert objective.reference_sequences == reference_sequences

    policy, reference = batch()
    out = objective(
        policy={key: policy[key] for key in sequences},
        reference={key: reference[key] for key in reference_sequences} or None,
    )
    samples = [
        SimpleNamespace(
            logp={key: policy[key].logp[i].item() for key in SEQUENCES},
            tokens={key: policy[key].tokens[i].item() for key in SEQUENCES},
            ref={key: reference[key][i].item() for key in SEQUENCES},
        )
        for i in range(5)
    ]
    wanted = torch.tensor([expected(sample) for sample in samples], dtype=torch.float64)
    torch.testing.assert_close(out.per_sample, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.loss, wanted.mean(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_finite_differences(batch, case):
    name, options, sequences, _, _ = CASES[case]
    objective = build_objective(name, **options)
    policy, reference = batch(n=3, seed=1)

    def loss(*logps):
        scores = {key: type(policy[key])(logp, policy[key].tokens) for key, logp in zip(sequences, logps, strict=True)}
        return objective(scores, reference).per_sample

    assert torch.autograd.gradcheck(loss, [policy[key].logp for key in sequences])


def test_dpo_starts_at_ln_2_when_the_policy_is_the_reference(batch):
    policy, _ = batch(dtype=torch.float32)
    reference = {name: scores.logp.detach() for name, scores in policy.items()}
    for name in ("dpo", "ipo"):
        out = build_objective(name)(policy, reference)
        assert out.metrics["loss/po"].item() == pytest.approx(math.log(2) if name == "dpo" else 1.0, rel=1e-6)
        assert out.metrics["rewards/margin"].item() == 0.0
        assert out.metrics["rewards/accuracy"].item() == 0.0  # a tie is no win
