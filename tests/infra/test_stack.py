"""compose.yaml without docker: its services' own commands and environments as processes, and its nginx in front.

A fair stand-in: images and networks are missing, but settings, order, health checks and the door are the real
ones. Where the tests may make namespaces, services have a read-only root and no capabilities, as compose has it.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import create_connection

import psutil
import psycopg2
import pytest
import yaml
from sqlalchemy.engine import make_url
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from flows.servers import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]
INFRA = Path(__file__).parents[2] / "infra"
BINARIES = Path(sys.executable).parent


DOORS = ("door to prefect", "door to mlflow")
LOCKED = """
mount --rbind / "$0/root" && mount -o remount,ro,bind "$0/root" && mount --bind "$0" "$0/root$0" &&
exec chroot "$0/root" setpriv --bounding-set -all --inh-caps -all --no-new-privs -- "$@"
"""
"""What docker does for `read_only`, `cap_drop` and `no-new-privileges`, in a mount namespace."""


def locking(here: Path) -> list[str]:
    """The words before a command that may write `here` alone; none where this process may not make namespaces."""
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", LOCKED, str(here)]
    works = os.getuid() == 0 and not subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    return words if works else []


class Stack:
    """The services of compose.yaml, with a folder of this machine for `/data` and `/tmp`."""

    def __init__(self, here: Path, database: str):
        self.here, self.services = here, yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
        self.ports = {name: free_port(0) for name in ("prefect", "mlflow", "worker", *DOORS)}
        lines = (here / ".env").read_text().splitlines()
        self.dotenv = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
        self.database = make_url(database)
        self.dotenv["POSTGRES_PASSWORD"] = str(self.database.password)
        self.login = f"{self.dotenv['GPTLOOM_USER']}:{self.dotenv['GPTLOOM_PASSWORD']}"
        self.locking = locking(here)

    def local(self, text: object) -> str:
        """A value of compose.yaml with its settings put in, and everything at this machine's places."""
        text = re.sub(r"\$\{(\w+):[?-]([^}]*)\}", lambda m: self.dotenv.get(m[1]) or m[2], str(text))
        text = re.sub(r"^/(data|tmp)\b|(?<= )/(data|tmp)\b", lambda m: f"{self.here}{m[0]}", text)
        for old, new in (
            ("prefect:4200", f"127.0.0.1:{self.ports['prefect']}"),
            ("mlflow:5000", f"127.0.0.1:{self.ports['mlflow']}"),
            ("postgres:5432", f"127.0.0.1:{self.database.port}"),
            ("/app/infra", f"{self.here}/infra"),
        ):
            text = text.replace(old, new)
        whole = {"0.0.0.0": "127.0.0.1", "postgres": "127.0.0.1"}
        whole |= {"5432": str(self.database.port), "8080": str(self.ports["worker"])}
        return whole.get(text, text)

    def environment(self, name: str) -> dict[str, str]:
        """What the image and compose.yaml tell a service, and nothing of this process."""
        lines = (INFRA / "Dockerfile").read_text().rpartition("\nENV ")[2].partition("\nWORKDIR")[0]
        told = dict(re.findall(r"(\w+)=([^\s\\]+)", lines)) | self.services[name].get("environment", {})
        here = {"PATH": f"{BINARIES}:/usr/sbin:/usr/bin:/bin", "TMPDIR": str(self.here / "tmp")}
        return {key: self.local(value) for key, value in told.items()} | here

    def command(self, name: str, *words: str) -> list[str]:
        """A service's command, locked up as compose does it where that can be."""
        command = [self.local(word) for word in self.services[name]["command"]]
        if "--port" in command:
            command[command.index("--port") + 1] = str(self.ports[name])
        return [*self.locking, *command, *words]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A service's process; its output in `NAME.log`."""
        with (self.here / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self.command(name), env=self.environment(name), cwd=INFRA.parent, stdout=log, stderr=log
            )

    def await_health(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Until the service's own health check of compose.yaml says yes."""
        inside = {"prefect": 4200, "mlflow": 5000, "worker": 8080}[name]
        test = [str(word) for word in self.services[name]["healthcheck"]["test"][1:]]
        test = [word.replace(f"127.0.0.1:{inside}", f"127.0.0.1:{self.ports[name]}") for word in test]
        for _ in range(180):
            if subprocess.run(test, capture_output=True, check=False, env=self.environment(name)).returncode == 0:
                return
            assert process.poll() is None, (self.here / f"{name}.log").read_text()[-3000:]
            time.sleep(1)
        pytest.fail(f"{name} is not healthy: " + (self.here / f"{name}.log").read_text()[-3000:])

    def run(self, name: str, *words: str) -> str:
        """What a service that ends says."""
        return finished(self.command(name, *words), self.environment(name))

    def ask(self, door: str, path: str, login: str = "", body: object = None, **headers: str) -> tuple[int, str]:
        """Status and text of a request."""
        if login:
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        at = f"http://127.0.0.1:{self.ports[door]}{path}"
        request = urllib.request.Request(at, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")


def finished(command: list[str], env: dict[str, str]) -> str:
    """The output of a command that succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=INFRA.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@contextmanager
def ended(process):
    """The process, which ends with the block, children first."""
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in family:
            if child.is_running():
                child.kill()


@pytest.fixture(scope="module")
def stack(new_postgres, script, tmp_path_factory):
    if not (nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")):
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    url, folder = new_postgres()
    here = folder.parent / "stack"
    for part in ("data/mlflow", "data/work", "tmp", "infra", "backups", "root"):
        (here / part).mkdir(parents=True)
    assert script("secrets.sh", here).returncode == 0
    made = Stack(here, url)
    for name in ("common.sh", "backup.sh"):
        shutil.copy(INFRA / name, here / "infra")
    (here / "infra" / "mlflow-auth.ini").write_text(made.local((INFRA / "mlflow-auth.ini").read_text()))
    create_databases(made.database)
    text = made.local((INFRA / "nginx.conf").read_text()).replace("/etc/nginx/htpasswd", f"{here}/secrets/htpasswd")
    for inside, name in zip((4200, 5000), DOORS, strict=True):
        text = re.sub(rf"listen {inside}\b", f"listen 127.0.0.1:{made.ports[name]}", text)
    (here / "tmp" / "nginx.conf").write_text(text)
    door = "daemon off; user root;" if made.locking else "daemon off;"  # root without capabilities cannot be another
    made.services["proxy"]["command"] = [nginx, "-c", "/tmp/nginx.conf", "-e", "stderr", "-g", door]
    with ExitStack() as running:
        made.running = {name: running.enter_context(ended(made.start(name))) for name in ("prefect", "mlflow")}
        for name, process in made.running.items():
            made.await_health(name, process)
        proxy = running.enter_context(ended(made.start("proxy")))
        while not listening(made.ports[DOORS[0]]):
            assert proxy.poll() is None, (here / "proxy.log").read_text()
            time.sleep(0.1)
        yield made


def listening(port):
    with suppress(OSError), create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def create_databases(at):
    """What the postgres image does on an empty volume."""
    server = psycopg2.connect(host=at.host, port=at.port, user=at.username, password=at.password, dbname="postgres")
    server.autocommit = True
    for line in ["CREATE DATABASE prefect;", *(INFRA / "databases.sql").read_text().splitlines()]:
        if not line.startswith("--"):
            server.cursor().execute(line)
    server.close()


def test_nothing_comes_through_the_door_without_the_password(stack):
    for door, paths in (
        ("door to prefect", ["/", "/docs", "/api/health", "/api/flows/count", "/ui-settings"]),
        ("door to mlflow", ["/", "/health", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/signup"]),
    ):
        for path in paths:
            assert stack.ask(door, path)[0] == 401, path
            assert stack.ask(door, path, "admin:wrong-password-here")[0] == 401, path
            assert stack.ask(door, path, stack.login)[0] in (200, 405), path
    assert stack.ask("door to prefect", "/proxy-health") == (200, "ok\n")


def test_foreign_hosts_and_foreign_pages_are_refused_even_with_the_password(stack):
    for door, path in (("door to prefect", "/api/health"), ("door to mlflow", "/health")):
        port = stack.ports[door]
        assert stack.ask(door, path, stack.login, Host=f"evil.example:{port}")[0] == 421
        assert stack.ask(door, path, stack.login, Origin="http://evil.example")[0] == 403
        assert stack.ask(door, path, stack.login, Origin="http://127.0.0.1:1")[0] == 403
        assert stack.ask(door, path, stack.login, Origin="null")[0] == 403
        assert stack.ask(door, path, stack.login, Origin=f"http://127.0.0.1:{port}")[0] == 200
        assert stack.ask(door, path, stack.login, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_servers_behind_the_door_want_the_password_too_and_prefect_a_token_for_changes(stack):
    experiment = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    for name, path in (("prefect", "/api/admin/version"), ("mlflow", experiment)):
        assert stack.ask(name, path)[0] == 401
        assert stack.ask(name, path, stack.login)[0] == 200
    status, text = stack.ask("door to prefect", "/api/variables/", stack.login, body={"name": "a", "value": "b"})
    assert status == 403, text
    assert "CSRF" in text


def test_a_websocket_comes_through_and_prefect_asks_it_for_the_password(stack):
    address = f"ws://127.0.0.1:{stack.ports['door to prefect']}/api/events/out"
    with connect(address, subprotocols=["prefect"]) as socket:
        socket.send(json.dumps({"type": "auth", "token": stack.login}))
        assert json.loads(socket.recv(timeout=10))["type"] == "auth_success"
    with connect(address, subprotocols=["prefect"]) as socket:
        socket.send(json.dumps({"type": "auth", "token": "admin:wrong"}))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)


def test_services_have_no_capabilities_and_listen_where_told(stack):
    for name, process in stack.running.items():
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        heard = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {tuple(at) for at in heard} == {("127.0.0.1", stack.ports[name])}
        if stack.locking:
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE), name
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), name


def test_a_run_from_outside_is_delivered_through_the_door(stack, tiny_recipe, tmp_path):
    outside = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": stack.login.partition(":")[2]}
    outside["PREFECT_API_URL"] = f"http://127.0.0.1:{stack.ports['door to prefect']}/api"
    outside["PREFECT_API_AUTH_STRING"] = stack.login
    outside["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{stack.ports['door to mlflow']}"
    words = ["run", str(tiny_recipe), "--until", "ingest", "--store", str(tmp_path / "store")]
    said = finished([sys.executable, "-m", "flows.cli", *words], os.environ | outside)
    assert "MLflow: http://127.0.0.1" in said, "not everything was delivered"


def test_the_worker_does_what_the_page_asks(stack, tiny_recipe):
    for _ in range(2):  # the same again changes nothing
        stack.run("deploy")
    sources = stack.here / "sources"
    shutil.copytree(tiny_recipe.parent, sources)
    recipe = sources / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny_recipe.parent), str(sources)))
    with ended(stack.start("worker")) as worker:
        stack.await_health("worker", worker)
        prefect = [str(BINARIES / "prefect"), "deployment", "run", "ingest/ingest", "--watch"]
        finished([*prefect, "--param", f"recipe={recipe}"], stack.environment("deploy"))
    assert len(list((stack.here / "data" / "work" / "store").glob("ingest/*/0001/artifact.json"))) == 1


def test_the_backup_service_saves_all_three_databases(stack):
    stack.run("backup", str(stack.here / "backups" / "one"))
    dumps = {path.name for path in (stack.here / "backups" / "one" / "databases").iterdir()}
    assert dumps == {"prefect.dump", "mlflow.dump", "mlflow_auth.dump"}
