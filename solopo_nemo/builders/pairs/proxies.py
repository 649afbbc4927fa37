"""The HTTP client of a server, with the proxies of the environment.

httpx reads `NO_PROXY` as well, but refuses ranges such as `fd00::/8`, and needs a package for SOCKS.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from importlib.util import find_spec
from typing import NamedTuple

import httpx

from solopo_nemo.runtime.credentials import shown_address
from solopo_nemo.runtime.errors import UserError


class Proxy(NamedTuple):
    """A proxy: its address, and the name of its variable."""

    address: str
    name: str


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy of an address; None if there is none or `NO_PROXY` names the host."""
    parsed = httpx.URL(url)
    proxies = urllib.request.getproxies_environment()
    kind = next((kind for kind in (parsed.scheme, "all") if proxies.get(kind)), None)
    host = parsed.host
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    if kind is None or _left_out(host, proxies.get("no", "")) or bypass(host, proxies):
        return None
    name = f"{kind}_proxy"
    return Proxy(proxies[kind], name if os.environ.get(name) else name.upper())


def http_client(url: str, connections: int, transport: httpx.BaseTransport | None) -> httpx.Client:
    """Return the client for a server.

    Raises:
        UserError: The proxy cannot be used.
    """
    limits = httpx.Limits(max_connections=connections)
    if transport is not None:
        return httpx.Client(limits=limits, transport=transport)
    proxy = proxy_of(url)
    if proxy is None:
        return httpx.Client(limits=limits, trust_env=False, verify=httpx.create_ssl_context())
    where = f"{proxy.name}={shown_address(proxy.address)}"
    if proxy.address.startswith("socks") and find_spec("socksio") is None:
        raise UserError(
            f"{where}: a SOCKS proxy needs the package socksio (pip install socksio); NO_PROXY={httpx.URL(url).host} "
            "leaves the proxy out"
        )
    try:
        return httpx.Client(limits=limits, trust_env=False, proxy=proxy.address, verify=httpx.create_ssl_context())
    except (ValueError, httpx.InvalidURL):
        raise UserError(
            f"{where}: not a proxy's address such as http://host:3128: correct it, or set NO_PROXY"
        ) from None


def _left_out(host: str, ranges: str) -> bool:
    """True if a host is an address in one of the ranges of `NO_PROXY`, such as `10.0.0.0/8` and `fd00::/8`."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    for one in ranges.split(","):
        try:
            if address in ipaddress.ip_network(one.strip().strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False
