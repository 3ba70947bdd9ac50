"""A database: a protocol that is neither TLS nor HTTP at its beginning, and turns into TLS in the middle."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from belljar_client import Result
from tests.conftest import wait_until
from tests.hostile.network import world as worlds

Hit = Callable[..., Result]

ADDRESS = "11.22.33.44"
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")

ASK = """
import socket, ssl, struct
def main(host, query):
    plain = socket.create_connection((host, 5432), 10)
    plain.sendall(struct.pack("!II", 8, 80877103))  # may we speak TLS?
    assert plain.recv(1) == b"S"
    connection = ssl._create_unverified_context().wrap_socket(plain, server_hostname=host)
    settings = b"user\\0postgres\\0database\\0postgres\\0\\0"
    connection.sendall(struct.pack("!II", 8 + len(settings), 196608) + settings)
    connection.sendall(b"Q" + struct.pack("!I", 5 + len(query)) + query.encode() + b"\\0")
    stream, values, ready = connection.makefile("rb"), [], 0
    while ready < 2:
        kind = stream.read(1)
        body = stream.read(struct.unpack("!I", stream.read(4))[0] - 4)
        ready += kind == b"Z"
        if kind == b"D":
            values.append(body[6:].decode())
        if kind == b"E":
            raise RuntimeError(body.decode())
    return values
"""


@pytest.fixture(scope="module")
def database(world: worlds.World, outside: Path) -> Iterator[None]:
    """PostgreSQL on a host of the outside, which speaks TLS only."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    assert found, "scripts/test installs PostgreSQL"
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="belljar-postgres-"))
    shutil.copy(outside / "key.pem", folder / "key.pem")
    shutil.copy(outside / "certificate.pem", folder / "certificate.pem")
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, "postgres", "postgres")
    (folder / "key.pem").chmod(0o600)
    data = folder / "data"
    initdb = [*AS_POSTGRES, str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("hostssl all all 0.0.0.0/0 trust\n")
    files = [f"ssl_key_file={folder / 'key.pem'}", f"ssl_cert_file={folder / 'certificate.pem'}"]
    chosen = [f"listen_addresses={ADDRESS}", f"unix_socket_directories={folder}", "ssl=on", "fsync=off", *files]
    options = [word for each in chosen for word in ("-c", each)]
    server = subprocess.Popen(
        ["nsenter", f"--net={world.outside_path}", *AS_POSTGRES, str(programs / "postgres"), "-D", str(data), *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: os.path.exists(folder / ".s.PGSQL.5432"), "PostgreSQL listens")
        yield
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def test_a_database_answers_over_its_own_protocol(database: None, hit: Hit) -> None:
    """Its greeting, the switch to TLS, a query and its rows pass, for the rule of its port alone."""
    inputs = {"host": "db.example.com", "query": "select 6 * 7 union all select length(repeat('x', 1000000))"}
    result = hit(ASK, inputs=inputs, allow=["db.example.com:5432"]).check()
    assert result.value == ["42", "1000000"]
    denied = hit(ASK, inputs=inputs, allow=["db.example.com"])
    assert denied.error is not None
    assert denied.error.kind == "NETWORK_DENIED"
    assert '"db.example.com:5432"' in denied.error.hint
