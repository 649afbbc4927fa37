from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["data_fixtures"]

REPOSITORY = Path(__file__).resolve().parents[1]

# machines differ, and so does what else they are doing
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


LONGEST = (
    *("test_parity.py", "test_pretrained.py", "test_runs.py", "test_wheel.py", "test_faults.py"),
    *("test_earlier_megatron.py", "test_gpu_check.py", "test_measurements.py", "test_selection.py"),
    *("test_torture.py", "test_pairs_end_to_end.py", "test_shards.py", "test_lora_run.py", "test_auto_alpha.py"),
    *("test_without_nemo.py", "test_convert.py", "test_signals.py", "test_dry_run.py", "test_bad_input.py"),
)
"""Files that two workers should not begin with last."""


PLACES = {"slurm": "test_slurm.py", "docker": "test_docker.py", "browser": "test_pages.py"}
"""The one file that has tests of a marker: ``.ci/run`` names it, so that the others are not imported."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    for marker, file in PLACES.items():
        elsewhere = [item.nodeid for item in items if item.get_closest_marker(marker) and item.path.name != file]
        assert not elsewhere, f"the marker {marker} is for {file}: {elsewhere[0]}"
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real question answering data beside the repository; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not beside the repository")
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this project says, each message once, whatever handlers the libraries have put on the way to the root."""
    messages: list[str] = []
    logger, handler = logging.getLogger("solopo_nemo"), logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])
    caplog.set_level(logging.INFO, "solopo_nemo")
    return messages
