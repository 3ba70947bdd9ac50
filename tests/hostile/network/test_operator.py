"""What the operator of a server decides about networks holds whatever a request says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar_client import Client, InvalidRequest
from belljar_server import config
from tests.conftest import BELLJAR, CANARY, Server, running_server
from tests.hostile.network import world as worlds
from tests.hostile.network.inside import TRY


@pytest.fixture(scope="module")
def ruled(
    world: worlds.World, outside: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Client]]:
    """A server with every setting about networks, and images that trust the outside's certificate."""
    folder = tmp_path_factory.mktemp("operator")
    ready = config.load(None).data_dir
    (folder / "data").mkdir()
    for part in ("bin", "cache", "layers"):  # what does not depend on certificates
        (folder / "data" / part).symlink_to(ready / part)
    (folder / "credentials").write_text("user:secret\n")
    settings = {
        "DATA_DIR": str(folder / "data"),
        "POOL__MAX": "0",
        "EGRESS__MODES": '["allowlist"]',
        "EGRESS__CA_BUNDLE": str(outside / "certificate.pem"),
        "EGRESS__DNS_SERVERS": worlds.DNS_SERVERS,
        "EGRESS__UPSTREAM_PROXY": "http://11.22.33.45:3128",
        "EGRESS__UPSTREAM_PROXY_CREDENTIALS_FILE": str(folder / "credentials"),
        "EGRESS__ALWAYS_ALLOW": '["a.example.org"]',
        "EGRESS__DENY": '["b.a.example.org", "11.22.33.66"]',
        "EGRESS__TRUSTED_UPSTREAM_CIDRS": '["10.99.0.0/24"]',
        "EGRESS__MAX_RULES": "3",
        "EGRESS__MAX__CONNECTIONS": "300",
        "EGRESS__AUDIT": "true",
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BELLJAR_")}
    environ |= {f"BELLJAR_{name}": value for name, value in settings.items()}
    subprocess.run([BELLJAR, "setup"], env=environ, check=True, capture_output=True)
    prefix = ("nsenter", f"--net={world.host_path}")
    with (
        running_server(prefix=prefix, ready=True, **settings) as running,
        worlds.way_in(world, int(running.address.rpartition(":")[2])) as address,
        Client(address) as client,
    ):
        yield running, client


def test_images_trust_what_the_operator_added(ruled: tuple[Server, Client]) -> None:
    """Python and Node verify the outside's certificate; a server with other settings than its images does not start."""
    running, client = ruled
    code = "import urllib.request\nurllib.request.urlopen('https://api.example.com/').status"
    assert client.execute(code, allow=["api.example.com"]).check().value == 200
    code = "return (await fetch('https://api.example.com/')).status"
    assert client.execute(code, runtime="javascript", allow=["api.example.com"]).check().value == 200
    environ = os.environ | {"BELLJAR_DATA_DIR": running.settings["DATA_DIR"], "BELLJAR_EGRESS__CA_BUNDLE": ""}
    refused = subprocess.run([BELLJAR, "serve"], env=environ, capture_output=True, text=True, check=False)
    assert "egress.ca_bundle is another one" in refused.stderr


def test_connections_go_through_the_operators_proxy_by_the_address_that_was_judged(
    ruled: tuple[Server, Client], asked: Path
) -> None:
    """The proxy is told an address, so it resolves nothing itself; its password is nowhere to be seen."""
    running, client = ruled
    result = client.execute(TRY + "get('http://api.example.com/p')", allow=["api.example.com"]).check()
    assert result.value["path"] == "/p"
    assert "proxy 11.22.33.44:80\n" in asked.read_text()
    assert "secret" not in running.log_text() + repr(result)


def test_the_servers_rules_are_added_to_the_requests(ruled: tuple[Server, Client]) -> None:
    """Always allowed, never allowed by name or by where a name leads, trusted though private."""
    _, client = ruled
    names = ["a.example.org", "b.a.example.org", "evil.com", "private.example.org", "metadata.example.org"]
    code = TRY + f"[get(f'http://{{name}}/') for name in {names}]"
    result = client.execute(code, allow=["*.a.example.org", "evil.com", "*.example.org"]).check()
    always, below, evil, private, metadata = result.value
    assert always["at"] == "11.22.33.45"
    assert below == "no such name"
    assert evil[0] == 403
    assert "the server's own rule 11.22.33.66 denies 11.22.33.66" in evil[1]
    assert private["at"] == "10.99.0.5"
    assert metadata[0] == 403
    nothing = client.execute(TRY + "get('http://a.example.org/')", network="allowlist").check()
    assert nothing.value["at"] == "11.22.33.45"


def test_a_denied_name_is_not_reached_by_its_number(ruled: tuple[Server, Client]) -> None:
    """Code that knows an address says the name only to the server there, in TLS or HTTP: it is read there."""
    _, client = ruled
    code = TRY + "[get('http://11.22.33.44/', Host=name) for name in ('x.org', 'b.a.example.org')]"
    other, denied = client.execute(code, allow=["11.22.33.44"]).check().value
    assert other["at"] == "11.22.33.44"
    assert denied[0] == 403
    assert "b.a.example.org" in denied[1]


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"network": "full"}, "network.mode", "is FULL; this server allows NONE, ALLOWLIST"),
        ({"allow": ["a.com", "b.com", "c.com", "d.com"]}, "network.allow", "at most 3"),
        ({"allow": ["a.com", "b.a.example.org"]}, "network.allow[1]", "denied by this server's rule"),
        ({"allow": ["a.com", "b.com", "127.0.0.1"]}, "network.allow[2]", "loopback"),
        ({"allow": ["https://a.com/"]}, "network.allow[0]", "URL"),
        ({"network": "none", "allow": ["a.com"]}, "network.allow", "for ALLOWLIST"),
    ],
)
def test_more_than_the_server_allows_is_refused_by_name(
    ruled: tuple[Server, Client], options: dict[str, object], field: str, words: str
) -> None:
    """Nothing is started, and nothing is taken away in silence."""
    _, client = ruled
    with pytest.raises(InvalidRequest) as refused:
        client.execute("1", **options)  # type: ignore[arg-type]  # wrong on purpose
    assert [(each.field, words in each.description) for each in refused.value.violations] == [(field, True)]


def test_the_modes_of_a_server_are_listed(ruled: tuple[Server, Client]) -> None:
    """So that a client can ask before it is refused."""
    _, client = ruled
    assert client.runtimes().network_modes == ("none", "allowlist")


def test_every_connection_is_in_the_audit_log(ruled: tuple[Server, Client]) -> None:
    """With execution, host, address, bytes and fate; nothing of what went over it."""
    running, client = ruled
    code = TRY + f"[get('http://api.example.com/{CANARY[:9]}'), get('http://11.22.33.44:8080/')]"
    result = client.execute(code, allow=["api.example.com"])
    lines = [json.loads(line) for line in running.log_text().splitlines()]
    mine = [line for line in lines if line["event"] == "connection" and line["execution_id"] == result.execution_id]
    assert {(line["host"], line["port"], line.get("address")) for line in mine} == {
        ("api.example.com", 80, "11.22.33.44"),
        ("11.22.33.44", 8080, None),
    }
    assert any(line["fate"] == "closed" and line["bytes_in"] > 100 and line["bytes_out"] > 50 for line in mine)
    assert any(line["fate"].startswith("denied: ") for line in mine)
    assert CANARY[:9] not in json.dumps(mine)
    summary = next(
        line for line in lines if line["event"] == "execution" and line["execution_id"] == result.execution_id
    )
    assert (summary["network"], summary["network_connections"], summary["denied"]) == ("allowlist", 2, 1)
