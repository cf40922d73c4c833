"""Where the servers of `make up` listen, by which names they may be asked, and whom they let in.

Three variables, of the environment or of .env: DENSITYWATCH_HOST, DENSITYWATCH_NAMES and DENSITYWATCH_LOGIN. By default
the servers listen on 127.0.0.1 alone. Another address needs the login: whoever reaches Prefect runs commands here.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from densitywatch import environment
from densitywatch.errors import ParamsError

HOST = "127.0.0.1"
EVERY = "0.0.0.0"  # noqa: S104 only with a login
HOST_VARIABLE, NAMES_VARIABLE = "DENSITYWATCH_HOST", "DENSITYWATCH_NAMES"


def host() -> str:
    """The address that the servers listen on.

    Raises ParamsError when it is no IPv4 address of this machine, or one that others reach while there is no login.
    """
    given = os.environ.get(HOST_VARIABLE) or HOST
    try:
        known = ipaddress.IPv4Address(given)
    except ValueError:
        known = None
    if known is None or not (given == EVERY or known.is_loopback or given in _own_addresses()):
        raise ParamsError(f"{HOST_VARIABLE}={given}: not an IPv4 address of this machine; give one, or {EVERY} for all")
    if given != HOST and environment.login() is None:
        raise ParamsError(
            f"{HOST_VARIABLE}={given}: others could reach the servers without a login; set"
            f" {environment.LOGIN}=name:password in {environment.ENV_FILE} as well, or leave {HOST_VARIABLE} at {HOST}"
        )
    return given


def reached() -> str:
    """The address by which this machine's own programs reach the servers."""
    return HOST if host() == EVERY else host()


def shown() -> str:
    """The name or address for people: the first of DENSITYWATCH_NAMES, else what the servers listen on."""
    if host() == EVERY:
        return (_given_names() or [socket.gethostname()])[0]
    return (_given_names() or [host()])[0]


def names() -> tuple[str, ...]:
    """The hosts that a request may name; any other is a foreign page in somebody's browser."""
    own: set[str] = {socket.gethostname(), *_own_addresses()} if host() == EVERY else {host()}
    return tuple(sorted({HOST, "localhost", *own, *_given_names()}))


def chosen() -> tuple[str, ...]:
    """What a person has chosen of all this: the address, then the names."""
    return (host(), *_given_names())


def _given_names() -> list[str]:
    return [name.strip().lower() for name in os.environ.get(NAMES_VARIABLE, "").split(",") if name.strip()]


def _own_addresses() -> set[str]:
    found = psutil.net_if_addrs().values()
    return {one.address for addresses in found for one in addresses if one.family == socket.AF_INET}
