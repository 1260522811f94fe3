"""The files of infra/ by their formats' judges, and what no judge knows: who listens, who may write, whose secrets."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
SCRIPTS = sorted([*INFRA.rglob("*.sh"), *INFRA.rglob("*.sbatch")])
TEXTS = sorted(p for p in INFRA.rglob("*") if p.is_file() and not set(p.parts) & {"secrets", "backups", ".env"})
BINARIES = Path(sys.executable).parent


def judged(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compose():
    """compose.yaml's services."""
    return yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]


def manifests():
    """Every Kubernetes object of infra/k8s, and the job that the base job template becomes."""
    found = [
        m for file in sorted(INFRA.glob("k8s/*.yaml")) for m in yaml.safe_load_all(file.read_text()) if "kind" in m
    ]
    return [*found, job()]


def job():
    """The base job template as the worker fills it in: its own defaults, and a flow run's name, command and labels."""
    template = json.loads((INFRA / "k8s" / "base-job-template.json").read_text())
    values = {name: p["default"] for name, p in template["variables"]["properties"].items() if "default" in p}
    values |= {"name": "demo", "command": ["prefect", "flow-run", "execute"], "labels": {"run": "1"}}
    values["env"] = [{"name": "PREFECT_API_URL", "value": "http://prefect-server:4200/api"}]

    def fill(thing):
        if isinstance(thing, dict):
            return {key: fill(value) for key, value in thing.items()}
        if isinstance(thing, list):
            return [fill(value) for value in thing]
        if isinstance(thing, str) and (whole := re.fullmatch(r"\{\{ (\w+) \}\}", thing)):
            return values[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda m: values[m[1]], thing) if isinstance(thing, str) else thing

    return fill(template["job_configuration"]["job_manifest"])


def pods():
    """(name, pod spec, container) of everything that runs containers."""
    specs = [(m["metadata"], m["spec"]["template"]["spec"]) for m in manifests() if "template" in m.get("spec", {})]
    return [(at.get("name", "job"), spec, container) for at, spec in specs for container in spec["containers"]]


def test_the_dockerfile_is_clean_for_hadolint():
    judged(BINARIES / "hadolint", INFRA / "Dockerfile")


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(file):
    judged(BINARIES / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", INFRA / file)


def test_manifests_and_the_filled_job_template_follow_kubernetes_schema(tmp_path):
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(manifests()))
    judged(sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", tmp_path / "all.yaml")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash_and_clean_for_shellcheck(file):
    judged("bash", "-n", file)
    if shutil.which("shellcheck"):
        judged("shellcheck", "--source-path", INFRA.parent, "--external-sources", file)


def test_only_the_proxy_is_published_and_only_on_loopback_unless_asked():
    ports = {name: service.get("ports", []) for name, service in compose().items()}
    assert [name for name, published in ports.items() if published] == ["proxy"]
    assert all(port.startswith("${GPTLOOM_BIND:-127.0.0.1}:") for port in ports["proxy"]), ports
    assert "GPTLOOM_BIND=127.0.0.1\n" in (INFRA / ".env.example").read_text()
    assert not [m for m in manifests() if m["kind"] == "Service" and m["spec"].get("type", "ClusterIP") != "ClusterIP"]
    assert yaml.safe_load((INFRA / "compose.yaml").read_text())["networks"]["inside"] == {"internal": True}
    assert {n for n, s in compose().items() if "outside" in s["networks"]} == {"proxy", "worker"}


@pytest.mark.parametrize("name", compose())
def test_every_container_is_locked_down(name):
    service = compose()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0].isdigit()
    assert service["user"].split(":")[0] != "0"
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["restart"]
    if name not in ("deploy", "backup"):  # they end
        assert service["healthcheck"]["test"][0] == "CMD"
    for field in ("command", "entrypoint"):
        assert isinstance(service.get(field, []), list), f"{name}'s {field} would start a shell"


def test_services_wait_until_what_they_need_answers():
    services = compose()
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} waits for {needed}"
            ended = needed == "deploy"
            assert how["condition"] == ("service_completed_successfully" if ended else "service_healthy")


@pytest.mark.parametrize(("name", "spec", "container"), pods(), ids=lambda p: p if isinstance(p, str) else "")
def test_every_pod_is_locked_down(name, spec, container):
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    locked = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == locked
    assert container["resources"]["limits"]["memory"]
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_charts_values_name_existing_secrets_and_no_root():
    for file, root in (("prefect-server.values.yaml", "server"), ("prefect-worker.values.yaml", "worker")):
        values = yaml.safe_load((INFRA / "k8s" / file).read_text())[root]
        assert values["containerSecurityContext"]["readOnlyRootFilesystem"] is True
        assert values["containerSecurityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert values["podSecurityContext"]["runAsNonRoot"] is True
        login = values.get("basicAuth") or values["selfHostedServerApiConfig"]["basicAuth"]
        assert login == {"enabled": True, "existingSecret": "gptloom-prefect"}


def test_a_run_on_kubernetes_asks_for_a_gpu_and_the_store():
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    claims = [v.get("persistentVolumeClaim") for v in job()["spec"]["template"]["spec"]["volumes"]]
    assert {"claimName": "gptloom-store"} in claims
    assert "gptloom-store" in [m["metadata"].get("name") for m in manifests() if m["kind"] == "PersistentVolumeClaim"]


def test_images_are_pinned():
    named = re.compile(r"^\s*(?:image:|FROM) +([^\s{][^\s]*)", re.MULTILINE)
    images = {image for file in TEXTS if file.suffix != ".md" for image in named.findall(file.read_text())}
    foreign = {image for image in images if not image.startswith(("gptloom:", "base", "{"))}
    assert len(foreign) == 3, foreign
    for image in foreign:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}", image), image
    for image in images - foreign - {"base"}:
        assert re.fullmatch(r"gptloom:\d+\.\d+\.\d+(-cuda)?", image), image
    assert not [f for f in TEXTS if re.search(r":(latest|stable|main)\b", f.read_text())]


SECRET = re.compile(r"(?:PASSWORD|SECRET_KEY|AUTH_STRING)\"?[ \t]*[:=](?!\?)[ \t]*\"?([^\s\"]+)")


def test_no_secret_is_written_down_and_none_has_a_default():
    for file in (f for f in TEXTS if f.suffix in (".yaml", ".json", ".ini", ".sql", ".conf", ".example", "")):
        for value in SECRET.findall(file.read_text()):
            assert re.match(r"\$\{\w+:\?", value), f"{file.name}: {value}"
    example = (INFRA / ".env.example").read_text()
    for name in set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text())):
        assert re.search(rf"^{name}={'admin' if name == 'GPTLOOM_USER' else ''}$", example, re.MULTILINE), name
    commands = [word for service in compose().values() for word in service.get("command", [])]
    assert not [word for word in commands if "$" in word], "ps shows commands"


def test_every_setting_of_compose_is_in_the_example_with_the_same_default():
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / ".env.example").read_text(), re.MULTILINE))
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (INFRA / "compose.yaml").read_text()))
    assert {name: example.get(name) for name in used} == used
    assert set(example) == set(used) | set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))


def test_every_setting_that_is_named_exists():
    import mlflow.environment_variables as known_to_mlflow
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    options = {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"}  # of the command `mlflow server`
    known = set(_get_settings_fields(Settings)) | {n for n in dir(known_to_mlflow) if n.startswith("MLFLOW_")} | options
    known |= {"PREFECT_HOME", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    found = {
        (name, file.name) for file in TEXTS for name in re.findall(r"\b(?:PREFECT|MLFLOW)_[A-Z_]+", file.read_text())
    }
    assert len(found) > 40
    assert {(word, file) for word, file in found if word not in known} == set()


def test_secrets_are_made_once_private_and_never_an_argument(script, tmp_path):
    assert script("secrets.sh", tmp_path).returncode == 0
    first = (tmp_path / ".env").read_text()
    secrets = [line.partition("=")[2] for line in first.splitlines() if re.search(r"^(\w*PASSWORD|\w*KEY)=", line)]
    assert len(secrets) == len(set(secrets)) == 3
    assert all(len(secret) == 48 for secret in secrets)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / ".env", tmp_path / "secrets")} == {0}
    assert script("secrets.sh", tmp_path).returncode == 0
    assert (tmp_path / ".env").read_text() == first
    user, _, hashed = (tmp_path / "secrets" / "htpasswd").read_text().strip().partition(":")
    assert user == "admin"
    again = ["openssl", "passwd", "-6", "-salt", hashed.split("$")[2], "-stdin"]
    assert subprocess.run(again, input=secrets[0], capture_output=True, text=True, check=True).stdout.strip() == hashed
    for file in (tmp_path / "secrets" / "kubernetes").rglob("*.*"):
        assert file.stat().st_mode & 0o077 == 0
    (tmp_path / ".env").write_text(first.replace(secrets[0], "short"))
    refused = script("secrets.sh", tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_what_must_stay_private_is_ignored_by_git_and_by_the_image():
    for path in ("infra/.env", "infra/secrets/htpasswd", "infra/backups/one/home/auth.json"):
        judged("git", "-C", INFRA.parent, "check-ignore", "-q", path)
    allowed = [line[1:] for line in (INFRA.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert not [word for word in allowed if "env" in word or "secret" in word or word == "infra"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert any(rule == name or rule.startswith(name + "/") for rule in allowed), f"{name} never reaches the build"


def test_the_image_has_what_compose_runs_and_python_and_postgresql_are_one_release_everywhere():
    docker = (INFRA / "Dockerfile").read_text()
    assert "USER 10001:10001\n" in docker
    assert re.search(r'^CMD \["', docker, re.MULTILINE)
    client, server = re.search(r"postgresql-client-(\d+)", docker), compose()["postgres"]["image"]
    assert client
    assert f"postgres:{client[1]}." in server, "an older pg_dump refuses a newer server"
    assert os.access(INFRA / "backup.sh", os.X_OK)
    assert compose()["backup"]["command"] == ["/app/infra/backup.sh"]
    assert compose()["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == "/app/infra/mlflow-auth.ini"
