"""A Qwen2 that is small enough to be pre-trained on a CPU within minutes: the embedded default's and the studies'."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

MULTIPLE = 128
"""The embedding is padded to it, as Megatron pads for tensor parallelism."""
HEADS = 4
IGNORE = -100
"""Label of a token that is not learned."""
PREVIOUS_TOKEN_BIAS = 5.0  # a head's weight is then mostly on one token

Draw = Callable[[int, int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""Makes the batch of a step, given its context length, the step's number and a generator: token ids and labels, int64
``[batch, tokens]``."""
Tell = Callable[[int, str], None]
"""Called with the finished steps and the state in words."""


@dataclass(frozen=True)
class Curriculum:
    """How long the contexts of the pre-training are: they grow each time that the model answers well.

    Attributes:
        shortest: length at the beginning, in sentences or paragraphs.
        longest: length at the end.
        enough: running share of right tokens at which the contexts grow.
        afterwards: value that the running share gets then.
        growth: from a length to how much longer the next one is.
        counted: labelled tokens that the share is taken over.
    """

    shortest: int
    longest: int
    enough: float
    afterwards: float
    growth: Callable[[int], int]
    counted: slice


@dataclass(frozen=True)
class Schedule:
    """How fast the pre-training learns.

    Attributes:
        steps: of AdamW.
        learning_rate: highest.
        warm_up: steps up to it.
        decay: how far the rate falls over the last two fifths of the steps, as a share; it ends at 5 % or above.
        seed: of the lengths and of the data; the model's own seed plus 1.
    """

    steps: int
    learning_rate: float
    warm_up: int
    decay: float
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        share = step / self.steps
        falling = 1.0 if share < 0.6 else max(0.05, 1 - (share - 0.6) / 0.4 * self.decay)
        return self.learning_rate * (min(1.0, (step + 1) / self.warm_up) * falling)


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


@torch.no_grad()
def attend_back(model: Qwen2ForCausalLM, distances: Sequence[int]) -> None:
    """Let the first heads of the first layer begin by attending some tokens back, through Qwen2's biases.

    Facts are learned to be read without this too, only several hundred steps later. All of it is trained on.

    Args:
        model: changed in place.
        distances: one a head, in tokens.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    size = attention.head_dim
    heads = size * len(distances)
    groups = -(-len(distances) * config.num_key_value_heads // config.num_attention_heads)
    angles = config.rope_theta ** -(torch.arange(0, size, 2).float() / size)
    attention.q_proj.weight[:heads] *= 0.1
    attention.k_proj.weight[: groups * size] *= 0.1
    turns = [part for distance in distances for part in ((distance * angles).cos(), -(distance * angles).sin())]
    attention.q_proj.bias[:heads] = PREVIOUS_TOKEN_BIAS * torch.cat(turns)
    ahead = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    attention.k_proj.bias[: groups * size] = PREVIOUS_TOKEN_BIAS * ahead.repeat(groups)


def pretrain(
    model: Qwen2ForCausalLM, schedule: Schedule, curriculum: Curriculum, draw: Draw, tell: Tell | None = None
) -> None:
    """Train on the answers of short contexts, which grow as the model learns.

    Half of the batches have the present length, the others any length up to it.

    Args:
        model: trained in place; the result depends on the number of threads.
        schedule: steps and learning rate.
        curriculum: lengths of the contexts.
        draw: see :data:`Draw`.
        tell: see :data:`Tell`.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    longest, right = curriculum.shortest, 0.0
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        easier = torch.rand(1, generator=generator).item() < 0.5
        drawn = torch.randint(curriculum.shortest, longest + 1, (1,), generator=generator) if easier else longest
        loss, hits = learn_batch(model, optimizer, *draw(int(drawn), step, generator))
        right = 0.9 * right + 0.1 * hits[curriculum.counted].float().mean().item()
        if right > curriculum.enough and longest < curriculum.longest:
            longest = min(curriculum.longest, longest + curriculum.growth(longest))
            right = curriculum.afterwards
        if tell:
            tell(step + 1, f"contexts of {longest}, loss {loss:.3f}, right {right:.2f}")
