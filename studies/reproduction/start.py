"""The starting model: a small Qwen2 pre-trained on short synthetic contexts, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from solopo_nemo.nemo_model.convert import import_hf
from studies.reproduction.world import (
    ANSWER,
    END,
    IDS,
    PAD,
    RESPONSE_TOKENS,
    SPECIALS,
    START,
    UNKNOWN,
    VOCABULARY,
    dialogues,
)
from studies.tiny import Curriculum, Schedule, Tell, attend_back, make_tiny_qwen2, pretrain

CHAT_TEMPLATE = (
    f"{{% for message in messages %}}{{% if loop.first %}}{{{{ '{START}' }}}}{{% endif %}}"
    f"{{% if message['role'] == 'assistant' %}}{{{{ '{ANSWER}' + message['content'] + '{END}' }}}}"
    f"{{% else %}}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '{ANSWER}' }}}}{{% endif %}}"
)
MATCH = 1.5  # initial scale: a match has several times the attention weight of a random token
SHORTEST = 4  # sentences of the first contexts in pre-training


@dataclass(frozen=True)
class Pretraining:
    """Settings of the starting model.

    Attributes:
        layers: number of layers.
        width: hidden size; the model has four heads.
        steps: optimizer steps.
        learning_rate: peak learning rate of AdamW.
        sentences: maximum context length of the curriculum, in sentences.
        seed: seed of weights and data.
    """

    layers: int = 2
    width: int = 64
    steps: int = 1000
    learning_rate: float = 3e-3
    sentences: int = 16
    seed: int = 0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with the ids of :data:`~studies.reproduction.world.IDS`."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # words with spaces between
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[word for word in SPECIALS if word not in (END, PAD, UNKNOWN)],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(settings: Pretraining) -> Qwen2ForCausalLM:
    """The model before any training."""
    model = make_tiny_qwen2(
        len(VOCABULARY),
        settings.layers,
        settings.width,
        key_value_heads=4,
        window=4096,
        end=IDS[END],
        pad=IDS[PAD],
        seed=settings.seed,
    )
    attend_back(model, (1,))
    _start_with_an_induction_head(model)
    return model


@torch.no_grad()
def _start_with_an_induction_head(model: Qwen2ForCausalLM) -> None:
    """Initialize the first head of the last layer as an induction head: it finds the successor of an equal token."""
    first, last = model.model.layers[0].self_attn, model.model.layers[-1].self_attn
    size = first.head_dim
    last.q_proj.weight[:size] = MATCH * first.v_proj.weight[:size]
    last.k_proj.weight[:size] = MATCH * first.o_proj.weight[:, :size].T


def pretrain_start(model: Qwen2ForCausalLM, settings: Pretraining, tell: Tell | None = None) -> None:
    """Pre-train the starting model in place, on one thread."""

    def draw(sentences: int, step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        facts = SHORTEST if sentences == SHORTEST else None  # the shortest contexts contain facts only
        return dialogues(max(16, 512 // max(8, sentences)), sentences, generator, facts)

    schedule = Schedule(settings.steps, settings.learning_rate, warm_up=100, decay=0.95, seed=settings.seed + 1)
    # accuracy counts the first value of each answer, which the model must read from the context
    counted = slice(1, None, RESPONSE_TOKENS)
    curriculum = Curriculum(
        SHORTEST, settings.sentences, 0.9, afterwards=0.6, growth=lambda n: max(1, n // 4), counted=counted
    )
    pretrain(model, schedule, curriculum, draw, tell)


@dataclass(frozen=True)
class Start:
    """The paths of the starting model in its two formats."""

    folder: Path

    @property
    def hf(self) -> Path:
        """Hugging Face folder, from which pairs are sampled."""
        return self.folder / "hf"

    @property
    def nemo(self) -> Path:
        """NeMo checkpoint, with which recipes start without a conversion."""
        return self.folder / "nemo"


def make_start(folder: Path, settings: Pretraining | None = None, tell: Tell | None = None) -> Start:
    """Create the tokenizer, pre-train the model, and write both. Existing files are reused.

    Args:
        folder: output folder.
        settings: settings of the pre-training; None uses the defaults.
        tell: see :data:`Tell`.
    """
    settings, start = settings or Pretraining(), Start(folder)
    if not (start.hf / "tokenizer.json").is_file():
        torch.set_num_threads(1)  # the result then does not depend on the number of cores
        model = make_model(settings)
        pretrain_start(model, settings, tell)
        model.save_pretrained(start.hf)
        make_tokenizer().save_pretrained(start.hf)
    import_hf(start.hf, start.nemo)
    return start
