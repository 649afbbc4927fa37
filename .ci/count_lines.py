"""Counts lines of code without blanks, comments and docstrings: ``python .ci/count_lines.py solopo_nemo``."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(source: str) -> int:
    """Lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # a string on its own documents the module, class, function or attribute before it
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the lines of each folder below the given ones, and their sum."""
    counts: Counter[str] = Counter()
    for root in map(Path, sys.argv[1:]):
        for path in root.rglob("*.py"):
            counts[str(root / path.relative_to(root).parts[0])] += code_lines(path.read_text(encoding="utf-8"))
    for folder, lines in sorted(counts.items()):
        print(f"{lines:6} {folder}")
    print(f"{sum(counts.values()):6} in all")


if __name__ == "__main__":
    main()
