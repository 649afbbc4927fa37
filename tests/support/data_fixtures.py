from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from samples import TEMPLATES, RowWriter, TokenizerMaker, musique_rows, train_tokenizer, with_template
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def make_tokenizer() -> TokenizerMaker:
    """Makes a small byte-level tokenizer that puts a begin token before plain text, with a template by its name."""
    text = [paragraph["paragraph_text"] for row in musique_rows(30) for paragraph in row["paragraphs"]]
    serialized = train_tokenizer(text, 700).to_str()

    def make(template: str | None = "qwen", **options: Any) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer.from_str(serialized)
        begin = tokenizer.token_to_id("<|begin|>")
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])
        return with_template(tokenizer, template and TEMPLATES[template], **options)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: TokenizerMaker) -> PreTrainedTokenizerFast:
    return make_tokenizer("qwen")


@pytest.fixture
def write_rows(tmp_path: Path) -> RowWriter:
    """Writes rows as JSON lines."""

    def write(rows: Iterable[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
