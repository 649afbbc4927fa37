"""A Qwen2 that is small enough to be pre-trained on a CPU within minutes."""

from __future__ import annotations

import math

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

MULTIPLE = 128
"""The embedding is padded to it, as Megatron pads for tensor parallelism."""
HEADS = 4
IGNORE = -100
"""Label of a token that is not learned."""


def make_tiny_qwen2(
    vocabulary: int, layers: int, width: int, key_value_heads: int, window: int, end: int, pad: int, seed: int
) -> Qwen2ForCausalLM:
    """A model with random weights, in fp32.

    Args:
        vocabulary: tokens.
        layers: of the model.
        width: of its hidden states.
        key_value_heads: of the four heads.
        window: longest sequence.
        end, pad: ids of these tokens.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=math.ceil(vocabulary / MULTIPLE) * MULTIPLE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=window,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        torch_dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
        elif parameter.dim() == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(parameter, std=width**-0.5 / (math.sqrt(2 * layers) if residual else 1.0))
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=pad)
    return model


def learn_batch(
    model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """One step of cross-entropy on the labelled tokens, the gradient clipped to 1.

    Args:
        model: trained in place.
        optimizer: of its parameters.
        ids: ``[batch, length]``, int64.
        labels: of the same shape: the id where it is learned, else :data:`IGNORE`.

    Returns:
        The loss, and for each labelled token but the first of a sequence whether it was the likeliest.
    """
    targets = labels[:, 1:]
    learned = targets != IGNORE
    logits = model.lm_head(model.model(ids[:, :-1]).last_hidden_state[learned])
    loss = torch.nn.functional.cross_entropy(logits, targets[learned])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), logits.argmax(-1) == targets[learned]
