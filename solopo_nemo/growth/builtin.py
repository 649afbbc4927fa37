"""Write the contexts of a round from the built-in questions: `python -m solopo_nemo.growth.builtin OUT SEED N`."""

from __future__ import annotations

import sys
from pathlib import Path

from solopo_nemo.embedded import SHORT_PARAGRAPHS, generate_contexts
from solopo_nemo.runtime import cli
from solopo_nemo.runtime.output import atomic_text, write_json_line

QUESTIONS = 2000
"""More than a round samples."""


def main(out: str, seed: str, multiple: str) -> None:
    """Write a contexts file.

    Args:
        out: the file, JSON lines.
        seed: seed of the questions.
        multiple: length of the long prompt, as a multiple of the short one.
    """
    with atomic_text(Path(out)) as stream:
        for row in generate_contexts(QUESTIONS, int(seed), long_paragraphs=int(multiple) * SHORT_PARAGRAPHS):
            write_json_line(stream, row)


if __name__ == "__main__":
    cli.run(lambda: main(*sys.argv[1:]))
