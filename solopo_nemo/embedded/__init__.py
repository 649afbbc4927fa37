"""The built-in multi-hop question set, in MuSiQue's schema: what the embedded default trains and is evaluated on."""

from solopo_nemo.embedded.generate import (
    generate_dialogues,
    generate_evaluation,
    generate_questions,
    generate_triplets,
)

__all__ = ["generate_dialogues", "generate_evaluation", "generate_questions", "generate_triplets"]
