"""HTTP and HTTPS to servers that are where they may be: a name is resolved once, and what it resolves to is checked.

In: a URL, whether private addresses are allowed. Out: an answer behind at most five redirects, or why there is none.
A recipe may come from elsewhere than the machine that runs it: else it could reach what listens on this machine only,
what stands in the network beside it, or a cloud's metadata, by its address, by a name, or by a redirect.
"""

import ipaddress
import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from gpt.errors import UserError

TIMEOUT_S, REDIRECTS = 30.0, 5
MOVED = (301, 302, 303, 307, 308)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
SAFE = "%/:=&?~#+!$,;'@()*[]"


class Unreachable(Exception):
    """No answer this time; another try may bring one, unless it is `hopeless`."""

    def __init__(self, why: str, wait_s: float = 0.0, hopeless: bool = False):
        super().__init__(why)
        self.wait_s, self.hopeless = wait_s, hopeless


def answer(url: str, headers: dict[str, str], private: bool) -> HTTPResponse:
    """What the server says, below 400 or 416, its body still to be read.

    Raises Unreachable where it may say something else later, UserError where it will not.
    """
    at = url
    for _ in range(REDIRECTS + 1):
        try:
            found = _ask(at, headers, private)
        except (ssl.SSLCertVerificationError, ValueError) as error:
            raise UserError(f"source {url!r}: {at} cannot be asked ({error}); check the address") from error
        except (OSError, HTTPException) as error:
            unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            raise Unreachable(f"{type(error).__name__}: {error}", hopeless=unknown) from error
        if found.status not in MOVED:
            return _judged(url, found)
        found.close()
        at = _moved(url, at, found.getheader("Location", ""))
    raise UserError(f"source {url!r}: more than {REDIRECTS} redirects; give the address where the file is")


def public(host: str, port: int) -> list[tuple]:
    """Where a name leads, as `socket.getaddrinfo` tells; UserError where any of it is not out in the public network."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, where in found:
        if not is_public(ipaddress.ip_address(str(where[0]).partition("%")[0])):
            what = f"{host} has the address {where[0]}, which is of this machine or a private network"
            raise UserError(f"{what}; ingest.private_addresses=true allows that")
    return found


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is out in the public network; where an IPv6 one stands for an IPv4 one, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or nat64 or address
    return address.is_global and not address.is_multicast


def _ask(url: str, headers: dict[str, str], private: bool) -> HTTPResponse:
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    path = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
    proxy = None if proxy_bypass(host) else urlsplit(getproxies().get(parts.scheme, "")).netloc
    if proxy:  # which says by itself what may be reached
        connection = (HTTPSConnection if secure else HTTPConnection)(proxy, timeout=TIMEOUT_S)
        if secure:
            connection.set_tunnel(host, port)
        path = path if secure else url
    else:
        connection = (Secure if secure else Plain)(host, port, timeout=TIMEOUT_S)
        connection.private = private
    connection.request("GET", path, headers={"Host": parts.netloc, "User-Agent": "gptloom", **headers})
    return connection.getresponse()


class Plain(HTTPConnection):
    """Connects to the very address that was checked."""

    private = False

    def connect(self) -> None:
        """Resolve, check, connect."""
        if self.private:
            self.sock = socket.create_connection((self.host, self.port), self.timeout)
            return
        error: OSError | None = None
        for family, kind, protocol, _, where in public(self.host, self.port):
            try:
                self.sock = socket.socket(family, kind, protocol)
                self.sock.settimeout(self.timeout)
                return self.sock.connect(where)
            except OSError as failed:
                error = failed
                self.sock.close()
        raise error or OSError("no address")


class Secure(Plain, HTTPSConnection):
    """The same with TLS, the certificate being checked for the name."""

    def connect(self) -> None:
        """Resolve, check, connect, shake hands."""
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _judged(url: str, found: HTTPResponse) -> HTTPResponse:
    said = f"the server says {found.status} ({found.reason})"
    if found.status < 400 or found.status == 416:
        return found
    found.close()
    if found.status in (408, 429) or found.status >= 500:
        wait = found.getheader("Retry-After", "")
        raise Unreachable(said, min(60.0, float(wait)) if wait.isdigit() else 0.0)
    raise UserError(f"source {url!r}: {said}; check the address and who may read it")


def _moved(url: str, at: str, location: str) -> str:
    to = urljoin(at, location)
    if urlsplit(to).scheme not in ("http", "https") or (at.startswith("https:") and not to.startswith("https:")):
        raise UserError(f"source {url!r}: a redirect leads to {to[:200]!r}, which is less than it was; give another")
    return to
