"""URLs: fetched once, resumed where cut, refused where they lead inside, by a real server on this machine."""

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from flows.intake import entry
from gpt.errors import UserError
from tasks import remote, web
from tasks.ingest import Ingest, ingest
from tasks.remote import Limits, fetched
from tasks.runtime import Runtime
from tasks.sources import find, from_hub
from tasks.stage import Session, using
from tasks.store import Store

HERE = Limits(private=True)
LINES = b"".join(b'{"text": "Document number %d."}\n' % n for n in range(3_000))


class Server(ThreadingHTTPServer):
    """Answers each path as `serve` says; remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Callable[[Handler], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that has seen enough hangs up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.routes[urlsplit(self.path).path](self)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def say(self, status: int, body: bytes = b"", send: int | None = None, **headers: object) -> None:
        """A whole answer; `send` cuts it off after so many bytes."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:send])
        if send is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    monkeypatch.setattr(web, "getproxies", dict)


@pytest.fixture
def server(monkeypatch):
    """A real server, asked each time, with no pause between tries."""
    monkeypatch.setattr(remote, "PAUSE_S", 0)
    monkeypatch.setattr(remote, "BELIEVED_S", 0)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def file(body: bytes, etag: str = "", cuts: list[int] | None = None, ranges: bool = True) -> Callable[[Handler], None]:
    """What serves one file as good servers do; each of `cuts` ends one answer after so many bytes."""
    tag, cuts = etag or f'"{hashlib.sha256(body).hexdigest()[:8]}"', list(cuts or [])

    def serve(handler: Handler) -> None:
        asked = handler.headers
        if asked.get("If-None-Match") == tag:
            return handler.say(304, Content_Length=None, ETag=tag)
        start = int(asked["Range"].removeprefix("bytes=").rstrip("-")) if ranges and asked.get("If-Range") == tag else 0
        about = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        handler.say(206 if start else 200, body[start:], cuts.pop(0) if cuts else None, ETag=tag, **about)

    return serve


def get(url: str, limits: Limits = HERE) -> bytes:
    ((_, path),) = fetched(url, limits)
    return path.read_bytes()


def told(url: str, limits: Limits = HERE) -> str:
    with pytest.raises(UserError) as error:
        list(fetched(url, limits))
    assert "\n" not in str(error.value)
    return str(error.value)


# -- good servers -----------------------------------------------------------------------------------------------------


def test_an_unchanged_file_is_not_sent_again_and_a_changed_one_is(server):
    server.routes["/a.jsonl"] = file(LINES)
    assert get(server.url("/a.jsonl")) == LINES
    assert "If-None-Match" not in server.asked[0][1]
    assert get(server.url("/a.jsonl")) == LINES
    assert server.asked[1][1]["If-None-Match"].startswith('"')
    server.routes["/a.jsonl"] = file(LINES[:100])
    assert get(server.url("/a.jsonl")) == LINES[:100]


def test_a_server_that_answers_with_the_same_tag_is_not_read(server):
    sent = []

    def serve(handler: Handler) -> None:
        handler.say(200, LINES, ETag='W/"1"')
        sent.append(1)

    server.routes["/a.jsonl"] = serve
    first = next(iter(fetched(server.url("/a.jsonl"), HERE)))[1]
    before = first.stat().st_ino
    assert get(server.url("/a.jsonl")) == LINES
    assert first.stat().st_ino == before, "it was written again"


def test_a_server_that_tells_nothing_of_its_file_is_read_each_time(server):
    server.routes["/a.jsonl"] = lambda handler: handler.say(200, LINES)
    get(server.url("/a.jsonl"))
    server.routes["/a.jsonl"] = lambda handler: handler.say(200, LINES[::-1])
    assert get(server.url("/a.jsonl")) == LINES[::-1]


def test_a_server_is_believed_for_some_minutes(server, monkeypatch):
    monkeypatch.setattr(remote, "BELIEVED_S", 300)
    server.routes["/a.jsonl"] = file(LINES)
    for _ in range(3):
        get(server.url("/a.jsonl"))
    assert len(server.asked) == 1


def test_a_file_is_named_by_its_content_wherever_it_is(server, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(LINES)
    server.routes["/a.jsonl"] = file(LINES)
    url = server.url("/a.jsonl?version=2")
    source = find([url], limits=HERE)[0]
    assert source.identity == find([str(tmp_path / "b.jsonl")])[0].identity
    assert (source.kind, source.path, entry(source)) == ("url", url, url)
    assert from_hub(url), "a plan does not fetch it"
    heard: list[str] = []
    assert len(find([url, str(tmp_path / "b.jsonl")], note=heard.append, limits=HERE)) == 1
    assert "counts once" in heard[0]


def test_a_url_without_an_ending_is_told_and_a_builder_takes_it(server):
    server.routes["/download"] = file(LINES)
    with pytest.raises(UserError, match="hf:BUILDER:URL"):
        find([server.url("/download")], limits=HERE)
    source = find([f"hf:json:{server.url('/download')}"], limits=HERE)[0]
    assert source.format == "hf:json"
    assert entry(source) == f"hf:json:{server.url('/download')}"


def test_ingest_reads_a_url_and_a_second_run_hits(server, tmp_path):
    server.routes["/a.jsonl"] = file(LINES)
    config = Ingest(sources=(server.url("/a.jsonl"),), private_addresses=True)
    with using(Session(Store(tmp_path / "store"), Runtime(workers=1))) as session:
        first = ingest(config)
        assert ingest(config).digest == first.digest
        assert session.results["ingest"].cache == "hit"
    (row,) = json.loads((first.path / "logs" / "sources.json").read_text())
    assert (row["path"], row["documents"]) == (server.url("/a.jsonl"), 3_000)
    with using(Session(Store(tmp_path / "store"))), pytest.raises(UserError, match=r"ingest\.private_addresses=true"):
        ingest(Ingest(sources=(server.url("/a.jsonl"),)))


# -- bad servers ------------------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_stopped(server):
    server.routes["/a.jsonl"] = file(LINES, cuts=[40_000, 30_000])
    assert get(server.url("/a.jsonl")) == LINES
    assert [asked.get("Range") for _, asked in server.asked] == [None, "bytes=40000-", "bytes=70000-"]


def test_a_file_that_changed_since_the_cut_is_fetched_from_its_beginning(server):
    server.routes["/a.jsonl"] = file(LINES, cuts=[40_000] * 5, ranges=False)
    assert "ended after 40,000 of" in told(server.url("/a.jsonl"))
    server.routes["/a.jsonl"] = file(LINES[::-1])
    assert get(server.url("/a.jsonl")) == LINES[::-1]
    assert server.asked[-1][1]["Range"] == "bytes=40000-"


def test_a_server_that_goes_on_elsewhere_is_asked_from_the_beginning(server):
    def serve(handler: Handler) -> None:
        if "Range" in handler.headers:
            return handler.say(206, LINES[5:], ETag='"x"', Content_Range=f"bytes 5-{len(LINES) - 1}/{len(LINES)}")
        handler.say(200, LINES, cuts.pop() if cuts else None, ETag='"x"')

    cuts, server.routes["/a.jsonl"] = [40_000], serve
    assert get(server.url("/a.jsonl")) == LINES


def test_an_error_of_the_moment_is_tried_again_and_others_are_told_at_once(server):
    says = [503, 429, 500]
    server.routes["/a.jsonl"] = lambda handler: handler.say(says.pop(), Retry_After=0) if says else file(LINES)(handler)
    assert get(server.url("/a.jsonl")) == LINES
    assert len(server.asked) == 4
    server.routes["/b.jsonl"] = lambda handler: handler.say(404, b"nothing here")
    assert "the server says 404 (Not Found)" in told(server.url("/b.jsonl"))
    assert len(server.asked) == 5
    server.routes["/c.jsonl"] = lambda handler: handler.say(502)
    assert "cannot be reached (the server says 502" in told(server.url("/c.jsonl"))
    assert len(server.asked) == 5 + remote.TRIES


def test_a_server_that_is_away_leaves_the_copy(server, caplog):
    server.routes["/a.jsonl"] = file(LINES)
    get(server.url("/a.jsonl"))
    server.routes["/a.jsonl"] = lambda handler: handler.say(503)
    with caplog.at_level("INFO", "gptloom"):
        assert get(server.url("/a.jsonl")) == LINES
    assert "the copy of 20" in caplog.text
    server.routes["/a.jsonl"] = lambda handler: handler.say(410)
    assert "410 (Gone)" in told(server.url("/a.jsonl"))


@pytest.mark.parametrize("length", [None, 10**15])
def test_an_endless_body_ends_at_the_cap(length, server, tmp_path):
    def serve(handler: Handler) -> None:
        handler.say(200, Content_Length=length, **({} if length else {"Transfer_Encoding": "chunked"}))
        while True:
            handler.wfile.write(b"x" * 10_000 if length else b"2710\r\n" + b"x" * 10_000 + b"\r\n")

    server.routes["/a.jsonl"] = serve
    assert "longer than ingest.max_fetch_gb=0.001" in told(server.url("/a.jsonl"), Limits(True, 1_000_000))
    assert not list((tmp_path / "store").rglob("partial"))


def test_a_body_whose_end_cannot_be_known_is_refused(server):
    server.routes["/a.jsonl"] = lambda handler: handler.say(200, LINES, Content_Length=None, Connection="close")
    assert "does not say how long" in told(server.url("/a.jsonl"))
    server.routes["/b.jsonl"] = lambda handler: handler.say(200, b"x", Content_Encoding="gzip")
    assert "packs it unasked" in told(server.url("/b.jsonl"))


# -- addresses --------------------------------------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
    "100.64.0.1", "169.254.169.254", "224.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]",
    "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
def test_addresses_of_this_machine_and_of_private_networks_are_refused(host):
    assert "of this machine or a private network" in told(f"http://{host}:9/a.jsonl", Limits())


@pytest.mark.parametrize("to", ["http://127.0.0.2:{}/b.jsonl", "http://169.254.169.254/b.jsonl", "http://[::1]:{}/b"])
def test_a_redirect_to_a_private_address_is_refused(to, server, monkeypatch):
    real = web.is_public
    monkeypatch.setattr(web, "is_public", lambda address: str(address) == "127.0.0.1" or real(address))
    to = to.format(server.server_port)
    server.routes["/a.jsonl"] = lambda handler: handler.say(302, Location=to)
    server.routes["/b.jsonl"] = file(LINES)
    message = told(server.url("/a.jsonl"), Limits())
    assert "of this machine or a private network" in message
    assert to in message
    assert [path for path, _ in server.asked] == ["/a.jsonl"]


def test_redirects_are_followed_to_the_file_and_not_elsewhere(server):
    server.routes["/a.jsonl"] = lambda handler: handler.say(301, Location="/b.jsonl?x=1")
    server.routes["/b.jsonl"] = file(LINES)
    assert get(server.url("/a.jsonl")) == LINES
    server.routes["/loop"] = lambda handler: handler.say(302, Location="/loop")
    assert "more than 5 redirects" in told(server.url("/loop"))
    for to in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"):
        server.routes["/away"] = lambda handler, to=to: handler.say(302, Location=to)
        assert f"a redirect leads to '{to}'" in told(server.url("/away"))


def test_what_was_checked_is_what_is_connected_to(monkeypatch):
    """A name that resolves to another address the second time gains nothing by it."""
    resolved, connected = [], []

    def resolve(host, port, **_):
        resolved.append(host)
        address = "93.184.216.34" if len(resolved) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    class Dead:
        """A socket as far as it is used: remembers where it was to connect to, and fails."""

        def __init__(self, *_):
            self.settimeout = self.close = lambda *_: None

        def connect(self, where):
            connected.append(where)
            raise ConnectionRefusedError("refused")

    monkeypatch.setattr(remote, "TRIES", 1)
    monkeypatch.setattr(web.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(web.socket, "socket", Dead)
    assert "cannot be reached (ConnectionRefusedError" in told("http://rebound.example/a.jsonl", Limits())
    assert (resolved, connected) == (["rebound.example"], [("93.184.216.34", 80)])


@pytest.fixture
def certificate(tmp_path) -> Path:
    """Key and certificate of `localhost`, signed by itself."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2100, 1, 1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    made = made.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(secret + made.public_bytes(Encoding.PEM))
    return tmp_path / "both.pem"


def test_https_is_checked_for_the_name_and_does_not_lead_to_http(server, certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.routes["/a.jsonl"] = file(LINES)
    url = f"https://localhost:{server.server_port}/a.jsonl"
    assert "CERTIFICATE_VERIFY_FAILED" in told(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(url) == LINES
    assert "IP address mismatch" in told(url.replace("localhost", "127.0.0.1"))
    assert "of this machine" in told(url, Limits())
    server.routes["/a.jsonl"] = lambda handler: handler.say(302, Location=server.url("/b.jsonl"))
    assert "which is less than it was" in told(url)


def test_a_proxy_is_asked_where_there_is_one(server, monkeypatch):
    monkeypatch.setattr(web, "getproxies", lambda: {"http": server.url("")})
    monkeypatch.setattr(web, "proxy_bypass", lambda host: host == "127.0.0.1")
    server.routes["/a.jsonl"] = file(LINES)
    assert get("http://data.example/a.jsonl", Limits()) == LINES
    assert server.asked[0][0] == "http://data.example/a.jsonl"
    assert server.asked[0][1]["Host"] == "data.example"
    assert "of this machine" in told(server.url("/a.jsonl"), Limits())


def test_a_password_is_refused_and_not_shown():
    for url in ("https://me:secret@x.org/a.jsonl", "s3://key:secret@bucket/a.jsonl", "https://token@x.org/a.jsonl"):
        message = told(url)
        assert "password" in message
        assert "secret" not in message
        assert "token" not in message


# -- object stores ----------------------------------------------------------------------------------------------------


def bucket(objects: dict[str, bytes]) -> Callable[[Handler], None]:
    """As much of S3's protocol as Arrow's client asks of a bucket with these objects: HEAD, GET of a range, list."""
    date = "Sat, 21 Nov 2026 12:00:00 GMT"

    def listed(handler: Handler, prefix: str) -> None:
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-11-21T12:00:00.000Z</LastModified>"
            f"<ETag>&quot;x&quot;</ETag><Size>{len(body)}</Size></Contents>"
            for key, body in sorted(objects.items())
            if key.startswith(prefix)
        )
        xml = f'<?xml version="1.0"?><ListBucketResult><Name>b</Name><Prefix>{prefix}</Prefix><IsTruncated>false'
        handler.say(200, f"{xml}</IsTruncated>{rows}</ListBucketResult>".encode(), Content_Type="application/xml")

    def serve(handler: Handler) -> None:
        url = urlsplit(handler.path)
        if "list-type" in (query := parse_qs(url.query)):
            return listed(handler, query.get("prefix", [""])[0])
        body = objects.get(url.path.removeprefix("/b/"))
        if body is None:
            return handler.say(404)
        start, stop = 0, len(body) - 1
        if asked := handler.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(stop, int(last or stop))
        about = {"Content_Range": f"bytes {start}-{stop}/{len(body)}"} if asked else {}
        handler.say(206 if asked else 200, body[start : stop + 1], ETag='"x"', Last_Modified=date, **about)

    return serve


def test_files_folders_and_globs_of_s3(server):
    objects = {"d/a.jsonl": LINES, "d/b.jsonl": LINES[:99], "d/c.pdf": b"x", "d/.h.txt": b"x", "d/e/f.txt": b"deep"}
    serve = bucket(objects)
    server.routes = dict.fromkeys(["/b", "/b/", "/b/d", "/b/d/", "/b/none", *(f"/b/{key}" for key in objects)], serve)
    query = f"?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    where = "s3://anonymous@b"
    found = list(fetched(f"{where}/d/a.jsonl{query}", HERE))
    assert [(url, path.read_bytes()) for url, path in found] == [(f"{where}/d/a.jsonl{query}", LINES)]
    sources = find([f"{where}/d{query}"], limits=HERE)
    assert [source.path for source in sources] == [
        f"{where}/d/{name}{query}" for name in ("a.jsonl", "b.jsonl", "e/f.txt")
    ]
    assert [find([source.path], limits=HERE) for source in sources] == [[source] for source in sources]
    server.asked.clear()
    assert [path.read_bytes() for _, path in fetched(f"{where}/d/*.jsonl{query}", HERE)] == [LINES, LINES[:99]]
    assert not [path for path, asked in server.asked if "Range" in asked], "what has not changed is not read again"
    assert "of this machine" in told(f"{where}/d{query}", Limits())
    assert "names no file" in told(f"{where}/d/*.parquet{query}")
    assert "longer than ingest.max_fetch_gb" in told(f"{where}/d/c.pdf{query}", Limits(True, 0))


def test_files_of_the_hub_come_through_its_own_client(monkeypatch):
    """fsspec's file system in memory answers as the hub's, which is fsspec's too, but has dates and no `blob_id`."""
    hub = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: hub)
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        hub.pipe(f"/datasets/org/name/{name}", LINES)
    assert get("hf://datasets/org/name/a.jsonl") == LINES
    names = [url.rpartition("/")[2] for url, _ in fetched("hf://datasets/org/name/*.jsonl")]
    assert names == ["a.jsonl", "b.jsonl"]
    assert [source.format for source in find(["hf://datasets/org/name"])] == ["jsonl"], "all have the same content"
    hub.pipe("/datasets/org/name/a.jsonl", LINES[:99])
    assert get("hf://datasets/org/name/a.jsonl") == LINES[:99]


def test_a_url_of_a_store_that_is_not_there_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be read" in told("hf://datasets/no/such/file.parquet")


def test_the_folder_of_a_url_has_a_name_without_surprises(server, tmp_path):
    server.routes["/..%2f..%2fevil.jsonl"] = file(LINES)
    ((_, path),) = fetched(server.url("/..%2f..%2fevil.jsonl"), HERE)
    assert path.is_relative_to(Path(tmp_path / "store" / "remote"))
    assert path.name == "evil.jsonl"
