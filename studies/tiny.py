"""A tiny Qwen2 that a CPU pre-trains within minutes, for the embedded default model and the studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

MULTIPLE = 128
"""The vocabulary is padded to a multiple of this number, as Megatron does for tensor parallelism."""
HEADS = 4
IGNORE = -100
"""Label of a token without loss."""
PREVIOUS_TOKEN_BIAS = 5.0  # the attention weight of a head is then mostly on one token

Draw = Callable[[int, int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""Maps context length, step number and a generator to a batch: token ids and labels, int64 ``[batch, tokens]``."""
Tell = Callable[[int, str], None]
"""Progress callback: receives the number of finished steps and a description of the state."""


@dataclass(frozen=True)
class Curriculum:
    """The curriculum of the pre-training: contexts grow when the model's accuracy is high enough.

    Attributes:
        shortest: initial length in sentences or paragraphs.
        longest: maximum length.
        enough: running token accuracy at which the contexts grow.
        afterwards: value to which the running accuracy is reset.
        growth: maps a length to the increment of the next length.
        counted: slice of the labelled tokens that the accuracy counts.
    """

    shortest: int
    longest: int
    enough: float
    afterwards: float
    growth: Callable[[int], int]
    counted: slice


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule of the pre-training.

    Attributes:
        steps: number of AdamW steps.
        learning_rate: peak learning rate.
        warm_up: warm-up steps.
        decay: relative decay over the last two fifths of the steps. The rate does not fall below 5 % of the peak.
        seed: seed of the lengths and the data; one more than the seed of the weights.
    """

    steps: int
    learning_rate: float
    warm_up: int
    decay: float
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate of a step; steps begin at 0."""
        share = step / self.steps
        falling = 1.0 if share < 0.6 else max(0.05, 1 - (share - 0.6) / 0.4 * self.decay)
        return self.learning_rate * (min(1.0, (step + 1) / self.warm_up) * falling)


def make_tiny_qwen2(
    vocabulary: int, layers: int, width: int, key_value_heads: int, window: int, end: int, pad: int, seed: int
) -> Qwen2ForCausalLM:
    """Build a model with random fp32 weights and four attention heads.

    Args:
        vocabulary: vocabulary size before padding.
        layers: number of layers.
        width: hidden size.
        key_value_heads: number of key-value heads.
        window: maximum sequence length in tokens.
        end, pad: ids of the end and padding tokens.
        seed: seed of the weights.
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
    """Run one training step: cross-entropy on the labelled tokens, gradient norm clipped to 1.

    Args:
        model: model, updated in place.
        optimizer: optimizer of its parameters.
        ids: token ids, int64 ``[batch, length]``.
        labels: int64 ``[batch, length]``: token id for a labelled token, else :data:`IGNORE`.

    Returns:
        The loss, and a bool tensor ``[labelled]``: True where the labelled token has the highest logit. The first token
        of a sequence does not count.
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
    """Initialize the first heads of the first layer to attend a fixed number of tokens back, with Qwen2's biases.

    Without this, the model needs several hundred more steps before it learns to read facts. Training changes all of it.

    Args:
        model: model, changed in place.
        distances: distance of each head in tokens.
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
    """Train on answers with the curriculum of context lengths.

    Half of the batches have the current maximum length. The others have a random length up to it.

    Args:
        model: model, updated in place. The result depends on the number of threads.
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
