from __future__ import annotations

import pytest
from shown import DOCS


@pytest.fixture
def hooks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MkDocs loads by its path is imported by its name."""
    monkeypatch.syspath_prepend(DOCS)
