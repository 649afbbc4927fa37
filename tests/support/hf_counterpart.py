"""The engine's model in transformers, and its log-probabilities from full logits."""

from __future__ import annotations

from typing import Any

import engine
import torch
import torch.nn.functional as F
from layouts import SINGLE, Layout


def hf_model(state: dict[str, torch.Tensor], layout: Layout = SINGLE) -> Any:
    """A transformers Qwen2, Qwen3-MoE or Gemma 3 with Megatron's weights, mapped by hand."""
    import transformers

    sizes = dict(
        vocab_size=engine.VOCAB, hidden_size=engine.HIDDEN, intermediate_size=engine.FFN,
        num_hidden_layers=engine.LAYERS, num_attention_heads=engine.HEADS, num_key_value_heads=engine.KV_HEADS,
        rope_theta=10000.0, rms_norm_eps=1e-6, tie_word_embeddings=layout.tied, max_position_embeddings=256,
    )  # fmt: skip
    gemma, moe = layout.family == "gemma3_text", layout.family == "qwen3_moe"
    if gemma:
        local = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
        sizes |= engine.GEMMA3 | dict(head_dim=24, layer_types=local, sliding_window=layout.window, pad_token_id=None)
        config: Any = transformers.Gemma3TextConfig(**sizes)
        model: Any = transformers.Gemma3ForCausalLM(config).float()
    elif moe:
        sizes |= dict(
            head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True,
            mlp_only_layers=[2],
        )  # fmt: skip
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes)).float()
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).float()
    dim, group = sizes.get("head_dim", engine.HIDDEN // engine.HEADS), engine.HEADS // engine.KV_HEADS
    embedding = state["embedding.word_embeddings.weight"]
    out = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": state["decoder.final_layernorm.weight"],
        "lm_head.weight": embedding if layout.tied else state["output_layer.weight"],
    }
    for i in range(engine.LAYERS):
        m, h = f"decoder.layers.{i}.", f"model.layers.{i}."
        out[h + "input_layernorm.weight"] = state[m + "self_attention.linear_qkv.layer_norm_weight"]
        before_mlp = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        routed = m + "mlp.router.weight" in state
        out[h + f"{before_mlp}.weight"] = state[
            m + ("pre_mlp_layernorm.weight" if routed else "mlp.linear_fc1.layer_norm_weight")
        ]
        if gemma:
            out[h + "post_attention_layernorm.weight"] = state[m + "self_attention.post_norm.weight"]
            out[h + "post_feedforward_layernorm.weight"] = state[m + "mlp.post_norm.weight"]
        if gemma or moe:
            for name in "qk":
                out[h + f"self_attn.{name}_norm.weight"] = state[m + f"self_attention.{name}_layernorm.weight"]
        out[h + "self_attn.o_proj.weight"] = state[m + "self_attention.linear_proj.weight"]
        stacks = [state[m + f"mlp.{'experts.' * routed}linear_{name}.weight"] for name in ("fc1", "fc2")]
        mlps = {h + "mlp.": tuple(stacks)}
        if routed:
            out[h + "mlp.gate.weight"] = state[m + "mlp.router.weight"]
            mlps = {h + f"mlp.experts.{e}.": pair for e, pair in enumerate(zip(*stacks, strict=True))}
        for path, (gate_up, down) in mlps.items():
            out[path + "gate_proj.weight"], out[path + "up_proj.weight"] = gate_up.chunk(2)
            out[path + "down_proj.weight"] = down
        for kind in ("weight",) if gemma or moe else ("weight", "bias"):
            qkv = state[m + f"self_attention.linear_qkv.{kind}"]
            groups = qkv.view(engine.KV_HEADS, group + 2, dim, *qkv.shape[1:])
            parts = {"q": groups[:, :group], "k": groups[:, group], "v": groups[:, group + 1]}
            for name, part in parts.items():
                out[h + f"self_attn.{name}_proj.{kind}"] = part.reshape(-1, *qkv.shape[1:])
    model.load_state_dict(out)
    return model


Pair = tuple[dict[str, Any], str]
"""A sample, and the column of one of its rejected answers."""


def full_logits_logps(model: Any, pairs: list[Pair]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each sequence alone, every logit, one log-softmax: (summed log-probability, scored tokens) by sequence name."""
    out = {}
    for name in ("short_chosen", "short_rejected", "long_chosen"):
        prompt, response = name.split("_")
        sums, counts = [], []
        for sample, rejected in pairs:
            answer = sample[rejected if response == "rejected" else "chosen"]
            ids = torch.tensor(sample[f"prompt_{prompt}"] + [i if i >= 0 else -1 - i for i in answer])
            logp = F.log_softmax(model(ids[None]).logits[0].double(), -1)
            n = len(answer)
            own = logp[-n - 1 : -1].gather(1, ids[-n:, None])[:, 0]
            sums.append(sum(value for value, i in zip(own, answer, strict=True) if i >= 0))
            counts.append(sum(i >= 0 for i in answer))
        out[name] = (torch.stack(sums), torch.tensor(counts))
    return out
