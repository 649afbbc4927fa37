"""Make the embedded default's tokenizer, starting model and training pairs: `python tools/make_tiny_model.py`.

A byte-level BPE tokenizer and a tiny Qwen2 are trained on short contexts of the built-in question set. The model then
answers well on short contexts and badly on long ones, which is the gap that short-to-long preference optimization
closes. Next, the model answers training questions on short contexts, many times each. A right and a wrong answer of
each question become a pair. `--pairs-only` samples new pairs from the existing model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    """Parse the command line, make the tokenizer, train, sample and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("solopo_nemo/assets/tiny_qwen2"),
        help="folder of the model; its pairs go beside it",
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step, about")
    parser.add_argument("--paragraphs", type=int, default=8, help="longest context, reached step by step")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=1280)
    parser.add_argument("--samples", type=int, default=32, help="answers a question")
    parser.add_argument("--temperature", type=float, default=1.2, help="of the answers")
    parser.add_argument("--pairs-only", action="store_true", help="keep the model that is there")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args(argv)

    if arguments.layers < 2 or arguments.layers % 2 or arguments.width % 16:
        parser.error(
            "--layers must be an even number, --width a multiple of 16: the model is split over two and four ranks"
        )

    from studies.tiny_model import make

    pairs, summary = make(arguments)
    print(json.dumps(summary) if arguments.json else f"wrote {arguments.out} and {pairs}: {summary}")
