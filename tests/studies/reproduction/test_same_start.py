"""The studies' world and starting model are those that their committed results were made with, to the bit."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from studies.reproduction.start import Pretraining, make_model, make_tokenizer, pretrain_start
from studies.reproduction.world import dialogues, training_questions

# Made with commit 776229a.
MACHINE = ("2.13.0", "AVX512")
QUESTIONS, DIALOGUES, TOKENIZER = "a6f04d6df46ef3cc", "fe7af4ea88f2863e", "e11fa8795f4fb294"
UNTRAINED, TRAINED = "beffb40a6ec324b5", "da0a5b2b40c73b51"


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def weights(model: torch.nn.Module) -> str:
    return digest(*(part for name, value in sorted(model.state_dict().items())
                    for part in (name.encode(), value.numpy().tobytes())))  # fmt: skip


def test_questions_dialogues_and_tokenizer_are_the_same() -> None:
    assert digest(json.dumps(list(training_questions(20, 3, 16, 128))).encode()) == QUESTIONS
    ids, labels = dialogues(5, 12, torch.Generator().manual_seed(4))
    assert digest(ids.numpy().tobytes(), labels.numpy().tobytes()) == DIALOGUES
    assert digest(make_tokenizer().backend_tokenizer.to_str().encode()) == TOKENIZER


@pytest.mark.skipif(
    (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()) != MACHINE,
    reason=f"weights are compared where torch and the processor are those of the hashes: {MACHINE}",
)
def test_thirty_steps_of_pre_training_give_the_same_weights() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = Pretraining(steps=30)
        model = make_model(settings)
        assert weights(model) == UNTRAINED
        pretrain_start(model, settings)
        assert weights(model) == TRAINED
    finally:
        torch.set_num_threads(threads)
