"""Identify clients: by the address for quotas, by a cookie (or else the address) for ownership of uploads."""

import ipaddress
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

COOKIE = "medunifier-client"
_MAX_COOKIE = 64  # characters; the gate sets 32. It is stored with every upload.
LOCAL_NAME = "localhost"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return host == LOCAL_NAME or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address that quotas count: an IPv4 address, or the /64 network of an IPv6 address.

    A machine can choose among the 2^64 addresses of its IPv6 network, so a single address does not identify it.
    """
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


def cookie_of(scope: Mapping[str, Any]) -> str:
    """Return the value of the client's cookie, or "" without one or for one that the gate did not set."""
    for name, value in scope["headers"]:
        if name == b"cookie" and COOKIE.encode() in value:
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None and len(found.value) <= _MAX_COOKIE:
                return found.value
    return ""


def owner_of(scope: Mapping[str, Any]) -> tuple[str, str]:
    """Return whom an upload belongs to: the holder of the cookie, or the address of a client without cookies."""
    cookie = cookie_of(scope)
    return ("cookie", cookie) if cookie else ("address", address_of(scope))
