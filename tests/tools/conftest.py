from __future__ import annotations

from pathlib import Path

import pytest
from slurm_stubs import StubCluster


@pytest.fixture
def cluster(tmp_path: Path) -> StubCluster:
    return StubCluster(tmp_path)
