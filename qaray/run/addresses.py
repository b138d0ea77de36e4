"""Checks the address of a Ray cluster before Ray's core waits for it."""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import urlsplit

from qaray.config import ConfigError, shown
from qaray.run.errors import RunError
from qaray.run.waiting import waiting

ANSWER_WAIT = 20.0  # seconds for a cluster's head to answer
BY_NAME = ("auto", "local")  # addresses that Ray resolves


def check_address(address: str, source: str, or_else: str = "") -> None:
    """Checks that a gRPC server answers at ``address``: HOST:PORT, ray://HOST:PORT, auto or local.

    ``source`` is the flag or the variable that holds it, ``or_else`` what else may be there. Raises ConfigError for
    anything else and for a host without an address, RunError if nothing answers within ANSWER_WAIT.
    """
    if address in BY_NAME:
        return
    host, port = host_and_port(address, source, or_else)
    resolve_host(host, address, source)
    import grpc

    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # the answer would need the cluster's certificates
    with waiting(f"the Ray cluster at {address}"), grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as to:
        try:
            grpc.channel_ready_future(to).result(timeout=ANSWER_WAIT)
        except grpc.FutureTimeoutError:
            raise RunError(
                f"{source} {address}: no Ray cluster answered within {ANSWER_WAIT:.0f} s: start it, correct the "
                "address, or leave it out to start a local cluster"
            ) from None


def check_job_server(url: str, source: str) -> None:
    """Checks that an HTTP server answers at ``url``. Raises ConfigError if none does within ANSWER_WAIT."""
    import requests

    try:
        with waiting(f"the job server at {url}"):
            requests.get(f"{url.rstrip('/')}/api/version", timeout=ANSWER_WAIT, stream=True).close()
    except requests.exceptions.SSLError:
        return  # Ray's client tells what is wrong with the certificate
    except requests.exceptions.RequestException as error:
        late = isinstance(error, requests.exceptions.Timeout)
        reason = f" within {ANSWER_WAIT:.0f} s" if late else f" ({type(error).__name__})"
        raise ConfigError(
            f"{source} {shown(url)}: no job server answered at {urlsplit(url).netloc}{reason}: correct the address"
        ) from None


def host_and_port(address: str, source: str, or_else: str = "") -> tuple[str, int]:
    """The parts of HOST:PORT or ray://HOST:PORT. Raises ConfigError for anything else."""
    scheme, separator, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (separator and scheme != "ray") or not host or not port or not re.fullmatch(r"[\w.:\[\]-]+", rest):
        raise ConfigError(f"{source} must be HOST:PORT, ray://HOST:PORT{or_else} or auto, got {shown(address)}")
    return host, port


def resolve_host(host: str, address: str, source: str) -> None:
    """Raises ConfigError if the name of a host has no address."""
    try:
        with waiting(f"the address of the host {host}"):
            socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"{source} {shown(address)}: host {host}: {reason}") from None
