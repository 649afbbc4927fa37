"""Libraries find a place for their caches where the home folder is missing or cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from solopo_nemo.runtime.environment import provide_home
from solopo_nemo.runtime.errors import UserError

CACHES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and no variable that names a cache."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in (*CACHES, "HF_HOME")})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: "readonly" not in str(path))
    return tmp_path / f"solopo-{os.getuid()}"


@pytest.mark.parametrize("home", ["/no/such/home", "~"])
def test_a_home_that_is_not_there(home: str, environment: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.environ["HOME"] = home
    provide_home()
    assert os.environ["HOME"] == str(environment) and environment.is_dir()
    assert environment.stat().st_mode & 0o777 == 0o700
    provide_home()
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        ("HOME is not set" if home == "~" else f"HOME={home}") in line
        and str(environment) in line
        and "set HOME" in line
    )


def test_a_home_that_can_only_be_read_keeps_what_it_holds(environment: Path, tmp_path: Path) -> None:
    home = tmp_path / "readonly"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    os.environ |= {"HOME": str(home), "MPLCONFIGDIR": "mine"}
    provide_home()
    assert os.environ["HOME"] == str(home)
    assert os.environ["HF_HOME"] == str(home / ".cache" / "huggingface")
    assert os.environ["MPLCONFIGDIR"] == "mine"
    assert os.environ["XDG_CACHE_HOME"] == str(environment / "cache")
    assert os.environ["TRITON_CACHE_DIR"] == str(environment / "triton")


def test_a_home_that_can_be_written_is_left_alone(environment: Path, tmp_path: Path) -> None:
    os.environ["HOME"] = str(tmp_path)
    before = dict(os.environ)
    provide_home()
    assert os.environ == before and not environment.exists()


def test_no_place_at_all(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["HOME"] = "/no/such/home"
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no/such")
    with pytest.raises(UserError, match=r"HOME=/no/such/home cannot be written, .* set HOME to a folder that can"):
        provide_home()
