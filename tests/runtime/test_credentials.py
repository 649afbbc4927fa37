"""What a message shows of addresses and commands, and what is left of an address that is none."""

from __future__ import annotations

import sys

import pytest

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.credentials import Server, masked, masked_command
from solopo_nemo.runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:pw@h:80/v1?key=abc", "http://h:80/v1"),
        ("error: --base-url http://u:pw@h/v1?k=abc: away", "error: --base-url http://h/v1: away"),
        ("'http://token@h/v1' and https://u:p/w#x@h/v1", "'http://h/v1' and https://h/v1"),
        ("postgresql://u:pw@h/db", "postgresql://h/db"),
        ("socks5://u:pw@[::1]:80", "socks5://[::1]:80"),
        *[
            (same, same)
            for same in (
                "s3://bucket/x#1.jsonl",
                "nowhere",
                "http://h:80/@cf/a",
                "http://[::1]:80/v1",
                "what? a@b",
                "x?y=z",
            )
        ],
    ],
)
def test_addresses_are_shown_without_credentials(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_commands_are_shown_without_keys() -> None:
    serve = "env HF_TOKEN=abc vllm serve {model} --api-key abc --hf-token=abc --port {port} --max-num-tokens 8"
    assert masked_command(serve) == (
        "env HF_TOKEN=*** vllm serve {model} --api-key *** --hf-token=*** --port {port} --max-num-tokens 8"
    )


@pytest.mark.parametrize(
    "address",
    [
        "http://u:p/ass@h/v1",
        "http://u:pass",
        "u:pass@h/v1",
        "ftp://u:pass@h",
        "http://u:1/pass@h/v1",
        "http://u:1?pass@h",
        "",
    ],
)
def test_what_is_no_address_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(UserError, match=r"^--base-url .*: not an address") as refused:
        Server.of(address, "--base-url")
    assert "ass@" not in str(refused.value) and "p/ass" not in str(refused.value) and "u:1" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["--base-ulr", "http://u:pw@h/v1"], "--base-ulr http://h/v1"), (["--api-key", "pw"], "--api-key ***")],
)
def test_the_error_line_of_a_command_has_no_credentials(
    words: list[str], shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["solopo"])
    with pytest.raises(SystemExit):
        cli.run(lambda: cli.ArgumentParser().parse_args(words) and 0)
    said = capsys.readouterr().err
    assert shown in said and "pw" not in said
