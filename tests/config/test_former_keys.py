"""Renamed configuration keys keep working, on the command line and in a saved configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from solopo_nemo.config.schema import load_config, read_config, save_config


@pytest.mark.parametrize("sign", ["", "++"])
def test_a_former_key_sets_the_present_one_and_is_named(sign: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "solopo_nemo"):
        config = load_config("solo_dpo", [f"{sign}parallel.context_mode=a2a", f"{sign}model.row_chunk=7"])
    assert (config.parallel.cp_comm_type, config.model.logits_chunk_size) == ("a2a", 7)
    for former, present in (
        ("parallel.context_mode", "parallel.cp_comm_type"),
        ("model.row_chunk", "model.logits_chunk_size"),
    ):
        assert f"{former} is deprecated: it is called {present} now" in caplog.text


@pytest.mark.parametrize(("written", "tokens"), [("8K", 8192), ("1m", 1048576), ("8000", 8000), ("null", None)])
def test_a_number_of_tokens_may_be_written_with_its_unit(written: str, tokens: int | None) -> None:
    assert load_config("solo_dpo", [f"data.max_tokens={written}"]).data.max_tokens == tokens


def test_a_configuration_saved_under_former_keys_is_read(tmp_path: Path) -> None:
    config = load_config("solo_dpo", ["parallel.cp_comm_type=a2a", "model.logits_chunk_size=7"])
    path = tmp_path / "config.yaml"
    save_config(config, path)
    text = path.read_text()
    path.write_text(text.replace("cp_comm_type:", "context_mode:").replace("logits_chunk_size:", "row_chunk:"))
    assert read_config(path) == config
    path.write_text("\n".join(line for line in text.splitlines() if "label_smoothing" not in line))
    assert read_config(path) == config, "an earlier run goes on without it"
