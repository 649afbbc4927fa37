"""Names, options and their errors; registration; what a call rejects; what the package imports."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import pytest
import torch

import solopo_nemo.objectives
from solopo_nemo.objectives import (
    DPO,
    SFT,
    LongPO,
    Objective,
    SequenceScores,
    SimPO,
    available_objectives,
    build_objective,
    objective_class,
    option_fields,
    register,
)
from solopo_nemo.runtime.errors import UserError

DEFAULTS = {
    "dpo": {"beta": 0.1, "alpha": 1.0},
    "simpo": {"beta": 2.0, "gamma": 1.0, "alpha": 1.0},
    "orpo": {"lambda_": 0.1, "alpha": 1.0, "nll_weight": 1.0},
    "ipo": {"beta": 0.1, "alpha": 1.0},
    "slic": {"beta": 1.0, "alpha": 1.0},
}
SHARED = {
    "align": "chosen",
    "align_on": "reward",
    "distance": "abs",
    "huber_delta": 1.0,
    "detach_short": False,
    "detach_higher": False,
    "alignment_reference": "policy",
    "nll_weight": 0.0,
    "label_smoothing": 0.0,
    "prompt": "short",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_options_and_defaults(name):
    options = {key: field.default for key, field in option_fields(objective_class(name)).items()}
    assert options == SHARED | DEFAULTS[name]
    assert all(field.metadata["help"] for field in option_fields(objective_class(name)).values())


def test_baselines_have_few_options():
    assert set(option_fields(LongPO)) == {"beta", "nll_weight", "label_smoothing"}
    assert set(option_fields(SFT)) == {"prompt"}
    with pytest.raises(TypeError):
        LongPO(prompt="short")


BAD = [
    ("dpo", {"gamma": 1.0}, "objective.gamma is not an option of dpo; its options are align, "),
    ("sft", {"alpha": 1.0}, "objective.alpha is not an option of sft; its options are prompt"),
    (
        "longpo",
        {"align": "both"},
        "objective.align is not an option of longpo; its options are beta, label_smoothing, nll_weight",
    ),
    ("dpo", {"beta": 0.0}, "objective.beta must be a finite number above 0; got 0.0"),
    ("dpo", {"beta": "0.1"}, "objective.beta must be a finite number above 0; got '0.1'"),
    ("dpo", {"beta": True}, "objective.beta must be a finite number above 0; got True"),
    ("dpo", {"beta": math.nan}, "objective.beta must be a finite number above 0; got nan"),
    ("dpo", {"beta": None}, "objective.beta must be a finite number above 0; got None"),
    ("simpo", {"gamma": -1}, "objective.gamma must be a finite number of at least 0; got -1"),
    ("orpo", {"lambda_": math.inf}, "objective.lambda_ must be a finite number of at least 0; got inf"),
    ("dpo", {"alpha": -0.5}, "objective.alpha must be a finite number of at least 0; got -0.5"),
    (
        "dpo",
        {"label_smoothing": 0.5},
        "objective.label_smoothing must be a finite number of at least 0 below 0.5; got 0.5",
    ),
    ("sft", {"label_smoothing": 0.1}, "objective.label_smoothing is not an option of sft"),
    ("slic", {"nll_weight": -1.0}, "objective.nll_weight must be a finite number of at least 0; got -1.0"),
    ("dpo", {"align": "short"}, "objective.align must be one of chosen, both, none; got 'short'"),
    ("dpo", {"align": None}, "objective.align must be one of chosen, both, none; got None"),
    ("dpo", {"align_on": "kl"}, "objective.align_on must be one of reward, logp; got 'kl'"),
    ("dpo", {"distance": "l1"}, "objective.distance must be one of abs, squared, huber; got 'l1'"),
    ("dpo", {"huber_delta": 0}, "objective.huber_delta must be a finite number above 0; got 0"),
    ("dpo", {"detach_short": "yes"}, "objective.detach_short must be true or false; got 'yes'"),
    ("dpo", {"detach_short": 1}, "objective.detach_short must be true or false; got 1"),
    ("dpo", {"alignment_reference": "both"}, "objective.alignment_reference must be one of policy, full; got 'both'"),
    ("simpo", {"alignment_reference": "full"}, "objective.alignment_reference must be policy, as simpo has no"),
    (
        "dpo",
        {"alignment_reference": "full", "align_on": "logp"},
        "objective.alignment_reference must be policy with objective.align_on=logp; got 'full'",
    ),
    ("dpo", {"prompt": "middle"}, "objective.prompt must be one of short, long; got 'middle'"),
    ("sft", {"prompt": "middle"}, "objective.prompt must be one of short, long; got 'middle'"),
    ("dpo", {"prompt": "long"}, "objective.align must be none (or objective.alpha 0) with objective.prompt=long"),
    ("dqo", {}, "objective.name must be one of "),
    (None, {}, "objective.name must be one of "),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[f"{name}-{options}" for name, options, _ in BAD])
def test_a_bad_option_is_one_line_that_names_it(name, options, message):
    with pytest.raises(UserError) as error:
        build_objective(name, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_constructor_checks_too():
    with pytest.raises(UserError, match=r"objective\.beta"):
        DPO(beta=-1.0)
    assert build_objective("simpo", gamma=0.5) == SimPO(gamma=0.5)


def test_built_in_names():
    assert {"dpo", "simpo", "orpo", "ipo", "slic", "longpo", "sft"} <= set(available_objectives())
    assert build_objective("dpo").name == "dpo"


def test_a_user_objective_is_used_by_name_with_all_options(batch):
    objective = build_objective("exponential", beta=0.3, align="both", distance="huber", nll_weight=0.1)
    policy, _ = batch()
    out = objective(policy)
    assert objective.reference_sequences == ()
    assert set(objective.sequences) == set(policy)
    gap = 0.3 * (policy["short_chosen"].logp - policy["short_rejected"].logp)
    torch.testing.assert_close(out.metrics["loss/po"], torch.exp(-gap).mean().detach())


def test_a_taken_name_is_rejected():
    with pytest.raises(ValueError, match=r"'dpo' is already registered by solopo_nemo\.objectives\.preference\.DPO"):
        register("dpo")(type("Other", (DPO,), {}))
    assert objective_class("dpo") is DPO


def test_an_objective_without_constant_is_rejected():
    with pytest.raises(TypeError, match="Bare must set bound_constant"):

        @register("bare")
        class Bare(Objective):
            pass

    assert "bare" not in available_objectives()


def scores(n=3, **changes):
    return SequenceScores(**({"logp": torch.full((n,), -1.0), "tokens": torch.full((n,), 2)} | changes))


GOOD = {"short_chosen": scores(), "short_rejected": scores(), "long_chosen": scores()}
REFERENCE = {"short_chosen": torch.zeros(3), "short_rejected": torch.zeros(3)}


@pytest.mark.parametrize(
    ("policy", "reference", "message"),
    [
        ({key: GOOD[key] for key in REFERENCE}, REFERENCE, "policy scores of 'long_chosen' are missing"),
        (GOOD, None, "reference log-probabilities of 'short_chosen' are missing"),
        (GOOD, {"short_chosen": torch.zeros(3)}, "reference log-probabilities of 'short_rejected' are missing"),
        (GOOD, REFERENCE | {"short_rejected": torch.zeros(1)}, r"reference\['short_rejected'\] holds 1 samples where"),
        (
            GOOD,
            REFERENCE | {"short_chosen": torch.zeros(3, 1)},
            r"reference\['short_chosen'\] must be a floating point",
        ),
        (GOOD | {"long_chosen": scores(1)}, REFERENCE, r"policy\['long_chosen'\]\.logp holds 1 samples where"),
        (GOOD | {"short_chosen": scores(logp=torch.tensor(-1.0))}, REFERENCE, r"must be a floating point tensor \[n\]"),
        (GOOD | {"short_chosen": scores(logp=torch.ones(3, 1))}, REFERENCE, r"must be a floating point tensor \[n\]"),
        (GOOD | {"short_chosen": scores(logp=torch.tensor([1, 2, 3]))}, REFERENCE, "must be a floating point tensor"),
        (GOOD | {"short_chosen": scores(0)}, REFERENCE, "n >= 1"),
        (GOOD | {"short_chosen": scores(tokens=torch.ones(1))}, REFERENCE, r"tokens has shape \[1\], logp \[3\]"),
    ],
)
def test_a_bad_call_says_what_is_wrong(policy, reference, message):
    with pytest.raises(ValueError, match=message):
        build_objective("dpo")(policy, reference)


def test_needs_nothing_but_torch():
    allowed = {"torch", "typing_extensions", "solopo_nemo"} | set(sys.stdlib_module_names)
    files = list(Path(solopo_nemo.objectives.__file__).parent.glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                assert module.split(".")[0] in allowed, f"{file.name} imports {module}"
                if module.startswith("solopo_nemo"):
                    assert module.startswith(
                        ("solopo_nemo.objectives", "solopo_nemo.runtime.errors", "solopo_nemo.runtime.options")
                    ), file.name
