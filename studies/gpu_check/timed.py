"""Seconds and peak memory of a training step: this project's, and the same step written with transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from solopo_nemo.objectives import SequenceScores, build_objective
from solopo_nemo.runtime import device
from studies.benchmarks.memory import PeakMemory, megatron_state
from studies.gpu_check.megatron import BASE, OBJECTIVES, RESPONSE, SHAPES, SHORT, Shape, Training, sample


def measure(system: str, shape: str, long: int, steps: int = 3) -> dict[str, Any]:
    """One row: median seconds of the steps after the first, and the peak of all above the loaded model.

    Args:
        system: ``SoLo-DPO``, ``Long-DPO``, or ``transformers``, which is SoLo-DPO too.
        shape: a key of ``SHAPES``.
        long: tokens of the long prompt.
        steps: how many.
    """
    sizes = SHAPES[shape]
    row = sample(sizes, 0, min(SHORT, long), long, RESPONSE)
    dtype = torch.bfloat16 if device.cuda() else torch.float32
    found: dict[str, Any] = {}
    state: list[torch.Tensor] = []
    if system == "transformers":
        step, parameters = _transformers(sizes)
    else:
        training = Training(sizes, dtype, system)
        step, parameters, found["layers"] = training.step, list(training.model.parameters()), training.layers
        state = [x for tensors in megatron_state([training.model], training.optimizer).values() for x in tensors]
    memory, seconds = PeakMemory(), []
    memory.start(parameters, state)
    for _ in range(steps):
        started = time.perf_counter()
        found["loss"] = step([row])  # a number: the GPU has finished when it is there
        device.synchronize()
        seconds.append(time.perf_counter() - started)
    return {**found, "seconds": statistics.median(seconds[1:]), "peak_gib": memory.peak() / 2**30}


def _has_flash_attention() -> bool:
    try:
        import flash_attn  # noqa: F401
    except Exception:  # none, or one that was built for another torch
        return False
    return True


def _transformers(shape: Shape) -> tuple[Callable[[list[dict[str, Any]]], float], list[torch.Tensor]]:
    """SoLo-DPO as the paper's own code has it: full logits, and a forward pass for each kind of prompt.

    fp32 weights under bf16 autocast and torch's fused AdamW on a GPU; fp32 on a CPU.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kernel = "flash_attention_2" if device.cuda() and _has_flash_attention() else "sdpa"
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv, rope_theta=BASE,
        max_position_embeddings=1 << 20, tie_word_embeddings=True, attn_implementation=kernel,
    )  # fmt: skip
    where = device.current()
    with where:
        model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    objective = build_objective("dpo", **OBJECTIVES["SoLo-DPO"])

    def logps(row: dict[str, Any], prompt: str, answers: list[str]) -> list[torch.Tensor]:
        ids = torch.tensor([row[prompt] + row[answer] for answer in answers], device=where)
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits
        logp = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return list(logp[:, len(row[prompt]) - 1 :].sum(1)[:, None])

    def step(rows: list[dict[str, Any]]) -> float:
        (row,), tokens = rows, torch.tensor([RESPONSE], device=where)
        short, long = logps(row, "prompt_short", ["chosen", "rejected"]), logps(row, "prompt_long", ["chosen"])
        names = ("short_chosen", "short_rejected", "long_chosen")
        policy = {name: SequenceScores(x, tokens) for name, x in zip(names, [*short, *long], strict=True)}
        loss = objective(policy, {name: torch.full_like(long[0], -1.0) for name in objective.reference_sequences}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step, list(model.parameters())
