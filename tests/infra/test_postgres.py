"""PostgreSQL without docker: passwords, loopback only, a role that may little, the same address at a second start."""

import psutil
import psycopg2
import pytest
from sqlalchemy.engine import make_url

pytestmark = pytest.mark.server


def query(url, words, database="postgres"):
    at = make_url(url)
    login = {"host": at.host, "port": at.port, "user": at.username, "password": at.password or ""}
    connection = psycopg2.connect(dbname=database, connect_timeout=5, **login)
    try:
        with connection.cursor() as cursor:
            cursor.execute(words)
            return cursor.fetchall()
    finally:
        connection.close()


def test_the_server_wants_a_password_listens_on_loopback_and_sums_its_pages(new_postgres):
    url, folder = new_postgres()
    assert query(url, "SHOW data_checksums") == [("on",)]
    assert query(url, "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user") == [(False, True)]
    hashes = "SELECT DISTINCT type || ' ' || auth_method FROM pg_hba_file_rules ORDER BY 1"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(url, hashes)
    for stranger in (make_url(url).set(password="wrong"), make_url(url).set(username="postgres", password="postgres")):
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            query(stranger, "SELECT 1")
    server = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().splitlines()[0]))
    assert server.username() != "root"
    assert {c.laddr.ip for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    assert not server.net_connections("unix")
    assert (folder / "password").stat().st_mode & 0o777 == 0o600


def test_a_second_start_prints_the_same_address_and_keeps_the_data(new_postgres, script):
    url, folder = new_postgres()
    port = make_url(url).port
    assert script("local/postgres.sh", "start", folder, port).stdout.strip() == url
    other = script("local/postgres.sh", "start", folder, port + 1)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert f"already runs at port {port}" in other.stderr
    assert script("local/postgres.sh", "stop", folder).returncode == 0
    assert script("local/postgres.sh", "start", folder, port).stdout.strip() == url
    assert query(url, "SELECT rolname FROM pg_roles WHERE rolname = 'gptloom'") == [("gptloom",)]


def test_a_stop_where_nothing_runs_is_one_line(script, tmp_path):
    done = script("local/postgres.sh", "stop", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: no server runs in {tmp_path}\n")
