"""Where a worker listens, the token that both sides know, and TLS."""

import contextlib
import ipaddress
import os
import re
import secrets
import ssl
import tempfile
from pathlib import Path

from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.files import read_bytes
from jettison.core.numbers import check_number

LOOPBACK = "127.0.0.1"
SHORTEST, LONGEST = 16, 1024  # bytes of a token
MOST_ADDRESS = 512  # bytes of a file with an address


def check_host(host: str, expose: bool) -> None:
    """Raise UsageError for a host other than this machine's loopback, unless ``expose`` asks for it."""
    if not expose and not is_loopback(host):
        raise UsageError(
            f"host = {shown(host)}: other machines could connect there; use {LOOPBACK}, or ask for it with --expose"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, or of a file that ``jettison offload serve --announce`` wrote.

    Raises UsageError for anything else.
    """
    text = address
    if ":" not in address or os.path.isfile(address):
        try:
            text = read_bytes(Path(address), MOST_ADDRESS).decode("ascii").strip()
        except (JettisonError, ValueError) as error:
            raise UsageError(f"address {shown(address)}: HOST:PORT, or a file that holds it, is needed") from error
    parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", text)
    if parts is None or not 0 < int(parts[3]) < 1 << 16:
        raise UsageError(f"address {shown(text)}: HOST:PORT is needed, with a port from 1 to 65535")
    return parts[1] or parts[2], int(parts[3])


def format_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port(port: int) -> None:
    """Raise UsageError for a port outside 0 (any free one) to 65535."""
    check_number("port", port, 0, 65535, whole=True)


def check_token(token: bytes, where: str = "token") -> bytes:
    """Return a token without the space around it. Raises UsageError if it is too short or too long."""
    token = token.strip()
    if not SHORTEST <= len(token) <= LONGEST:
        raise UsageError(
            f"{where} has {len(token)} bytes; {SHORTEST} to {LONGEST} are needed, since a short one can be guessed"
        )
    return token


def read_token(path: str | Path) -> bytes:
    """Read a token from a file. Raises UsageError for a file without one."""
    try:
        return check_token(read_bytes(Path(path), 4 * LONGEST), f"token file {path}")
    except UsageError:
        raise
    except JettisonError as error:
        raise UsageError(f"cannot read the token: {error}") from error


def make_token(path: str | Path) -> bytes:
    """Read a token from a file; if the file is missing, make it first, readable by its owner only.

    Raises UsageError for a file without a token, JettisonError if the file cannot be written.
    """
    path = Path(path)
    if not os.path.lexists(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")  # mode 600
            try:
                with open(descriptor, "w", encoding="ascii") as file:
                    file.write(f"{secrets.token_hex(32)}\n")
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):  # another process made one at the same time
                    os.link(temporary, path)
            finally:
                os.unlink(temporary)
        except OSError as error:
            raise JettisonError(f"cannot write the token file {path}: {error}") from error
    return read_token(path)


def worker_tls(certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    """Return the TLS settings of a worker; None without a certificate.

    certificate, key: files in PEM form. Raises UsageError if only one is given, or they cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its key, both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise UsageError(f"certificate {certificate} with key {key} cannot be used: {error}") from error
    return context


def device_tls(authority: str | Path | None) -> ssl.SSLContext | None:
    """Return the TLS settings of a device that trusts one certificate, by its file in PEM form; None without one.

    The worker's name is checked. Raises UsageError for a file that cannot be used.
    """
    if authority is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise UsageError(f"certificate {authority} cannot be used: {error}") from error
    return context
