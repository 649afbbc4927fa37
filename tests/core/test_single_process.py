"""One process against an independent implementation: the same weights in a Hugging Face model, full logits."""

from __future__ import annotations

from typing import Any

import engine
import pytest
import torch
import torch.nn.functional as F
from hf_counterpart import Pair, full_logits_logps, hf_model
from layouts import SINGLE, TURNS
from spawn import run_ranks

pytestmark = pytest.mark.distributed

BETA, ALPHA, GAMMA, LAMBDA = 0.1, 2.0, 1.0, 0.1


def pairs_of(samples: list[dict[str, Any]]) -> tuple[list[Pair], torch.Tensor]:
    """All pairs, and the weight of each in the mean over the samples."""
    pairs = [[(s, column) for column in s if column.startswith("rejected")] for s in samples]
    weights = [1 / len(own) / len(samples) for own in pairs for _ in own]
    return [pair for own in pairs for pair in own], torch.tensor(weights)


def written_out(
    kind: str, p: dict[str, tuple[torch.Tensor, torch.Tensor]], ref: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Table of section 2 of the specification, by hand, for each pair."""
    (sw, nw), (sl, nl), (lw, _) = p["short_chosen"], p["short_rejected"], p["long_chosen"]
    if kind == "dpo":
        margin = BETA * (sw - ref["short_chosen"]) - BETA * (sl - ref["short_rejected"])
        return -F.logsigmoid(margin) + ALPHA * (BETA * sw - BETA * lw).abs()
    if kind == "ipo":
        z = BETA * (sw - ref["short_chosen"] - sl + ref["short_rejected"])
        return (z - 1) ** 2 + ALPHA * (BETA * sw - BETA * lw) ** 2
    if kind == "slic":
        return (1 - BETA * (sw - sl)).clamp(min=0) + ALPHA * (BETA * (sw - lw)).abs()
    if kind == "simpo":
        margin = BETA * (sw / nw - sl / nl) - GAMMA
        return -F.logsigmoid(margin) + ALPHA * (BETA * (sw - lw) / nw).abs()
    odds = lambda a: a - torch.log(1 - a.exp())  # noqa: E731
    gap = (odds(sw / nw) - odds(lw / nw)).abs()
    return -sw / nw - LAMBDA * F.logsigmoid(odds(sw / nw) - odds(sl / nl)) + ALPHA * gap


OPTIONS = {
    "dpo": dict(beta=BETA),
    "ipo": dict(beta=BETA),
    "slic": dict(beta=BETA),
    "simpo": dict(beta=BETA, gamma=GAMMA),
    "orpo": dict(lambda_=LAMBDA),
}


def compute() -> dict[str, Any]:
    from solopo_nemo.objectives import build_objective

    engine.enter(SINGLE)
    model = engine.build(SINGLE)
    state = {k: v.detach().clone() for k, v in model.module.module.state_dict().items() if torch.is_tensor(v)}
    results: dict[str, Any] = {"state": state}
    for kind, options in OPTIONS.items():
        for layout in (SINGLE, TURNS):
            metrics = engine.step(model, layout, build_objective(kind, alpha=ALPHA, **options))
            gradient = engine.gradients(model)["embedding.word_embeddings.weight"]
            results[kind, layout.turns] = (metrics, gradient)
    vanilla = engine.step(model, SINGLE, build_objective("dpo", align="none"))
    results["vanilla"] = (vanilla, engine.gradients(model))
    results["alpha0"] = (engine.step(model, SINGLE, build_objective("dpo", alpha=0.0)), engine.gradients(model))
    results["separate"] = _separately(model)
    results["equal"] = _equal_prompts(model)
    results["own_class"] = _own_class()
    return results


def _own_class() -> list[str]:
    """A user's class over a stock NeMo config, as the README has it: what its parts are."""
    from nemo.collections import llm

    from solopo_nemo import SoLoPOMixin
    from solopo_nemo.nemo_model import mixin
    from solopo_nemo.objectives import build_objective

    class SoLoQwen2(SoLoPOMixin, llm.Qwen2Model): ...

    sizes = dict(num_layers=1, hidden_size=64, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2)
    model = SoLoQwen2(llm.Qwen2Config(vocab_size=256, **sizes), objective=build_objective("dpo", alpha=3.0))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixin.logger, "warning", said.append)
        former = SoLoQwen2(llm.Qwen2Config(vocab_size=256, **sizes), row_chunk=7)
    assert (former.logits_chunk_size, said) == (7, ["row_chunk is deprecated: it is called logits_chunk_size now"])
    model.configure_model()
    attention = model.module.decoder.layers[0].self_attention.core_attention
    return [type(x).__name__ for x in (model.module.output_layer, attention, model.training_loss_reduction)]


def _separately(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all sequences, packed two triplets at a time and one sequence at a time."""
    from solopo_nemo.core.scoring import score_batches
    from solopo_nemo.data.packing import Layout as Packing
    from solopo_nemo.data.packing import pack

    names, samples = ("short_chosen", "short_rejected", "long_chosen"), engine.make_samples()
    together = score_batches(
        model.module, [pack(samples[i : i + 2], names, Packing()) for i in range(0, len(samples), 2)]
    )
    alone = score_batches(model.module, [pack([s], [n], Packing()) for s in samples for n in names])
    return torch.cat(together), torch.cat(alone)


def _equal_prompts(model: Any) -> dict[str, float]:
    from solopo_nemo.objectives import build_objective

    original = engine.make_samples
    engine.make_samples = lambda turns: [s | {"prompt_long": s["prompt_short"]} for s in original()]
    try:
        return engine.step(model, SINGLE, build_objective("dpo"))
    finally:
        engine.make_samples = original


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_ranks(1, compute, (), tmp_path_factory.mktemp("single") / "out.pt")


@pytest.mark.parametrize("turns", [False, True], ids=["", "turns"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_agrees_with_transformers_and_the_formulas(results: dict[str, Any], kind: str, turns: bool) -> None:
    model = hf_model(results["state"])
    samples = engine.make_samples(turns)
    pairs, weights = pairs_of(samples)
    assert len(pairs) == (len(samples) if not turns else 2 * len(samples) - 1)
    scores = full_logits_logps(model, pairs)
    reference = {
        "short_chosen": torch.tensor([engine.reference_score(s, "chosen") for s, _ in pairs]),
        "short_rejected": torch.tensor([engine.reference_score(s, rejected) for s, rejected in pairs]),
    }
    loss = (weights * written_out(kind, scores, reference)).sum()
    loss.backward()
    metrics, grad = results[kind, turns]
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["logps/rejected"] == pytest.approx((weights * scores["short_rejected"][0]).sum().item(), rel=1e-5)
    assert metrics["logps/chosen_long"] == pytest.approx((weights * scores["long_chosen"][0]).sum().item(), rel=1e-5)
    answers = [(s, column) for s in samples for column in s if column.startswith(("chosen", "rejected"))]
    read = sum(len(s["prompt_short"]) + len(s[column]) - 1 for s, column in answers)
    assert metrics["tokens"] == read + sum(len(s["prompt_long"]) + len(s["chosen"]) - 1 for s in samples)
    want = model.model.embed_tokens.weight.grad
    assert (grad - want).abs().max() / want.abs().max() < 1e-4


def test_alpha_zero_is_vanilla_bit_for_bit_and_runs_no_long_sequence(results: dict[str, Any]) -> None:
    (vanilla, vanilla_grads), (alpha0, alpha0_grads) = results["vanilla"], results["alpha0"]
    assert alpha0 == vanilla
    assert alpha0["tokens_long"] == 0
    assert alpha0["tokens"] == sum(
        2 * len(s["prompt_short"]) + len(s["chosen"]) + len(s["rejected"]) - 2 for s in engine.make_samples()
    )
    assert all(torch.equal(alpha0_grads[k], g) for k, g in vanilla_grads.items())


def test_packed_equals_separate(results: dict[str, Any]) -> None:
    together, alone = results["separate"]
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_equal_prompts_have_no_gap(results: dict[str, Any]) -> None:
    assert results["equal"]["align/gap"] == pytest.approx(0.0, abs=1e-6)
    assert results["equal"]["loss"] == pytest.approx(results["equal"]["loss/po"], abs=1e-5)


def test_a_users_own_class_over_a_stock_config(results: dict[str, Any]) -> None:
    assert results["own_class"] == ["ResponseHead", "SDPACoreAttention", "ObjectiveReduction"]
