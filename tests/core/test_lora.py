"""Adapters at any layout against peft's on the Hugging Face model: random weights, norms and ``B``, every target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import engine
import pytest
import torch
import torch.nn.functional as F
from hf_counterpart import full_logits_logps, hf_model
from layouts import Layout
from spawn import run_ranks

pytestmark = pytest.mark.distributed

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
PLAIN_LAYERS = 1e-12
"""A dropout that drops nothing: the adapters then run beside the layers, as they do beside Transformer Engine's."""
RANK, ALPHA = 3, 7.0
GEMMA3 = Layout("tp2_gemma3", 2, tp=2, tied=True, family="gemma3_text", window=6)
MOE = Layout("moe", 2, family="qwen3_moe")
CASES = {
    "dp2": (Layout("dp2", 2), ALL, 0.0),
    "dp2 plain": (Layout("dp2", 2), ALL, PLAIN_LAYERS),
    "tp2": (Layout("tp2", 2, tp=2), ALL, 0.0),
    "tp2 plain": (Layout("tp2", 2, tp=2), ALL, PLAIN_LAYERS),
    "tp2 sp": (Layout("tp2_sp", 2, tp=2, sp=True), ALL, 0.0),
    "tp2 sp plain": (Layout("tp2_sp", 2, tp=2, sp=True), ALL, PLAIN_LAYERS),
    "cp2": (Layout("cp2", 2, cp=2), ALL, 0.0),
    "pp2, every layer recomputed": (Layout("pp2", 2, pp=2, recompute="full"), ALL, 0.0),
    "tp2, some targets, one product recomputed": (Layout("tp2", 2, tp=2, recompute="mlp"), SOME, 0.0),
    "tp2 sp, Gemma 3": (replace(GEMMA3, sp=True), ALL, 0.0),
    "tp2, Gemma 3 plain": (GEMMA3, ALL, PLAIN_LAYERS),
    "ep2, experts": (replace(MOE, ep=2), ALL, 0.0),
    "tp2 ep2, experts": (replace(MOE, tp=2, sp=True, ep=2), ALL, 0.0),
    "tp2 etp2, experts, every layer recomputed": (replace(MOE, tp=2, sp=True, etp=2, recompute="full"), ALL, 0.0),
    "cp2 ep2, experts, some targets": (replace(MOE, cp=2, ep=2), SOME, PLAIN_LAYERS),
}
"""Layout, targets and dropout."""
MOE_CASES = ("ep2, experts", "cp2 ep2, experts, some targets")
"""One for each choice of targets."""
DROPPED = {
    "tp2, dropout": (Layout("tp2", 2, tp=2), ALL, 0.5),
    "tp2 sp, dropout": (Layout("tp2_sp", 2, tp=2, sp=True), ALL, 0.5),
    "tp2 ep2, experts, dropout": (replace(MOE, tp=2, sp=True, ep=2), ALL, 0.5),
}


def one_case(layout: Layout, targets: tuple[str, ...], dropout: float) -> dict[str, Any]:
    from solopo_nemo.core.experts import without_losses
    from solopo_nemo.core.lora import LoRA, adapters_off
    from solopo_nemo.core.scoring import score_batches
    from solopo_nemo.objectives import build_objective

    engine.enter(layout)
    model = engine.build(layout, LoRA(RANK, ALPHA, dropout, targets))
    trained = {n: p for n, p in model.module.module.named_parameters() if p.requires_grad}
    objective = build_objective("dpo", alpha=2.0)
    batches = engine.batches(layout, objective)
    with adapters_off(model.module):
        off = score_batches(model.module, batches)
    on = score_batches(model.module, batches)
    with without_losses(model.config, [model.module]):  # of the routers: peft's model has none
        metrics = engine.step(model, layout, objective)
    base = engine.build(layout)  # the same weights: they are seeded by name
    return {
        "metrics": metrics,
        "grads": engine.whole_gradients(model),
        "adapters": engine.gather_full(model, {n: (p, p) for n, p in trained.items()}),
        "base": engine.gather_full(base, {n: (p, p) for n, p in base.module.module.named_parameters()}),
        "off is base": all(map(torch.equal, off, score_batches(base.module, batches))),
        "on is not": not any(map(torch.equal, off, on)),
        "gradients": sum(b.grad_data.numel() for b in model.module.buffers + model.module.expert_parallel_buffers),
        "trained": sum(p.numel() for p in trained.values()),
        "replicas agree": replicas_agree([p for p in trained.values() if is_on_every_rank(p, layout)]),
    }


def is_on_every_rank(p: Any, layout: Layout) -> bool:
    """Whether both tensor-parallel ranks have a parameter whole; of the experts', both of their channels' ranks."""
    return not p.partition_dim and layout.etp == 2 if p.dim() == 3 else not p.tensor_model_parallel


def replicas_agree(parameters: list[torch.nn.Parameter]) -> bool:
    """Whether all ranks have the same gradients."""
    import torch.distributed as dist

    own: list[Any] = [p.main_grad for p in parameters]  # type: ignore[attr-defined]
    found: list[Any] = [None, None]
    dist.all_gather_object(found, own)
    return all(map(torch.equal, *found))


def all_cases() -> dict[str, dict[str, Any]]:
    return {name: one_case(*case) for name, case in (CASES | DROPPED).items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = run_ranks(2, all_cases, (), tmp_path_factory.mktemp("lora") / "out.pt")
    return results


def as_peft(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By peft's names: of decoder.layers.1.mlp.lora_fc2.down_proj_A, a module's or of every expert's."""
    found = {}
    for name, value in tensors.items():
        _, _, layer, part, _, own = name.split(".")
        module, half = own.rsplit("_", 1)
        path = f"base_model.model.model.layers.{layer}.{part.replace('self_attention', 'self_attn')}"
        for expert, tensor in enumerate(value) if value.dim() == 3 else [(None, value)]:
            of = "" if expert is None else f".experts.{expert}"
            found[f"{path}{of}.{module}.lora_{half}.default.weight"] = tensor
    return found


@pytest.fixture(scope="module")
def by_peft(found: dict[str, dict[str, Any]]) -> dict[tuple[Any, ...], tuple[float, dict[str, torch.Tensor]]]:
    """Loss, and gradient by parameter, of peft's own adapters on the Hugging Face model, by targets and family."""
    from peft import LoraConfig, get_peft_model

    results = {}
    for case in ("dp2", "tp2, some targets, one product recomputed", "tp2 sp, Gemma 3", *MOE_CASES):
        layout, targets, _ = CASES[case]
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets))  # type: ignore[arg-type]
        model: Any = get_peft_model(hf_model(found[case]["base"], layout), config)
        parameters = dict(model.named_parameters())
        for name, value in as_peft(found[case]["adapters"]).items():
            parameters[name].data.copy_(value)
        samples = engine.make_samples()
        scores = full_logits_logps(model, [(sample, "rejected") for sample in samples])
        chosen, rejected, long = (scores[name][0] for name in ("short_chosen", "short_rejected", "long_chosen"))
        gaps = [engine.reference_score(s, "chosen") - engine.reference_score(s, "rejected") for s in samples]
        margin = 0.1 * (chosen - rejected - torch.tensor(gaps))
        loss = (-F.logsigmoid(margin) + 2.0 * 0.1 * (chosen - long).abs()).mean()
        loss.backward()
        results[targets, layout.family] = (
            float(loss.detach()),
            {n: p.grad for n, p in parameters.items() if p.requires_grad},
        )
    return results


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_peft(
    found: dict[str, dict[str, Any]], by_peft: dict[tuple[Any, ...], Any], case: str
) -> None:
    layout, targets, _ = CASES[case]
    loss, gradients = by_peft[targets, layout.family]
    assert found[case]["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    grads = as_peft(found[case]["grads"])
    assert grads.keys() == gradients.keys()
    for name, got in grads.items():
        want = gradients[name]
        assert want.abs().max() > 0, name
        assert float((got - want).abs().max() / want.abs().max()) < 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_without_its_adapters_the_model_is_its_base_to_the_bit(found: dict[str, dict[str, Any]], case: str) -> None:
    assert found[case]["off is base"]
    assert found[case]["on is not"]


@pytest.mark.parametrize("case", CASES)
def test_only_adapters_have_gradient_memory(found: dict[str, dict[str, Any]], case: str) -> None:
    trained = found[case]["trained"]
    assert trained <= found[case]["gradients"] < trained + 1024  # Megatron pads buffers


@pytest.mark.parametrize("case", [name for name, (layout, _, _) in (CASES | DROPPED).items() if layout.tp == 2])
def test_what_is_on_every_rank_has_the_same_gradient_there(found: dict[str, dict[str, Any]], case: str) -> None:
    assert found[case]["replicas agree"]
