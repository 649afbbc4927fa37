"""The built-in multi-hop question set. The default recipe trains and evaluates on it."""

from solopo_nemo.embedded.generate import (
    SHORT_PARAGRAPHS,
    generate_contexts,
    generate_dialogues,
    generate_evaluation,
    generate_triplets,
)

__all__ = [
    "SHORT_PARAGRAPHS",
    "generate_contexts",
    "generate_dialogues",
    "generate_evaluation",
    "generate_triplets",
]
