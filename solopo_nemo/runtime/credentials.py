"""Credentials in addresses and commands: requests use them, messages and files are without them."""

from __future__ import annotations

import base64
import re
import shlex
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from solopo_nemo.runtime.errors import UserError

_USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#:\[]*:(?!\d*(?:[/?#\s]|$))\S*@)")
"""User and password of an address. In the second form the password holds a character that ends them."""
_QUERY = re.compile(r"\b(https?://|wss?://)([^\s?#'\"]+)[?#][^\s'\"]*?(?=[:;,.)]*(?:[\s'\"]|$))")
_OPTION = re.compile(
    r"(--[\w-]*(?i:key|token|password|secret)(?:=|\s+)|\b\w*(?:KEY|TOKEN|PASSWORD|SECRET)=)('[^']*'|\"[^\"]*\"|[^\s'\"]+)"
)
_SHORTEST = 4
"""Characters from which on a part of an address is taken out of a server's words."""


class Server(NamedTuple):
    """The address of a server, and what proves to it who asks.

    Attributes:
        url: Address without user, password and query.
        query: Fields of the query, such as a key.
        authorization: Header of user and password; None without them.
        secrets: The forms in which a server may repeat them.
    """

    url: str
    query: dict[str, str]
    authorization: str | None
    secrets: tuple[str, ...]

    @classmethod
    def of(cls, address: str, option: str) -> Server:
        """Take an address apart.

        Args:
            address: `http://user:password@host:port/path?key=value`; user, password, port and query may be missing.
            option: The option that gives it, for messages.

        Raises:
            UserError: It is no address of HTTP.
        """
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host, behind = parts.netloc.rpartition("@")[2], f"{parts.path}?{parts.query}#{parts.fragment}"
        # a user with a password that begins with digits and holds one of / ? # looks like a host with a port
        split = re.search("[^/]@", behind) is not None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or split:
            shown = address.rpartition("@")[2] if split else shown_address(address)
            hint = "; write / ? # @ in a password as %2F %3F %23 %40" if shown != address else ""
            raise UserError(f"{option} {shown}: not an address such as http://127.0.0.1:8000/v1{hint}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        code = base64.b64encode(f"{user}:{password}".encode()).decode() if user or password else ""
        forms = [form for text in (password or user, *query.values()) for form in (text, quote(text, safe=""))]
        secrets = tuple(form for form in (code, *forms) if len(form) >= _SHORTEST)
        url = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        return cls(url, query, f"Basic {code}" if code else None, secrets)


def masked(text: str, *secrets: str) -> str:
    """Return a text whose addresses have no user, password and query, and with `***` for each of some secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if secret else text
    return _QUERY.sub(r"\1\2", _USER.sub("", text))


def shown_address(address: str) -> str:
    """Return an address without credentials, also one that lacks its ``http://``."""
    return masked(address) if "://" in address else address.rpartition("@")[2]


def secrets_of(words: Any) -> list[str]:
    """The values in the words of a command that :func:`masked_command` replaces, without very short ones."""
    found = (value.strip("'\"") for _, value in _OPTION.findall(shlex.join(map(str, words))))
    return [value for value in found if len(value) >= _SHORTEST]


def sign_in_of_mlflow(address: str) -> tuple[str, str] | None:
    """User and password in the address of an MLflow server; None without.

    Raises:
        UserError: The address has one of them alone, or they cannot be told from it.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or "@" not in address:
        return None
    variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if not (parts.username and parts.password and address.count("@") == 1):
        raise UserError(f"MLFLOW_TRACKING_URI: holds @ without a user and a password: set {variables} instead")
    return unquote(parts.username), unquote(parts.password)


def masked_command(text: str) -> str:
    """Return a command in words like :func:`masked`, with `***` for values of `--api-key`, `HF_TOKEN=` and the like."""
    return masked(_OPTION.sub(r"\1***", text))
