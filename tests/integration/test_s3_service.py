"""The whole service with its artifacts in a real S3 server, and what happens when that is down or fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session

from belljar_client import Artifact, ArtifactState, Client
from tests.conftest import Server, running_server, wait_until
from tests.integration.test_faults import DATA_DIR
from tests.integration.versitygw import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Gateway, running

pytestmark = pytest.mark.integration

BUCKET = "belljar"
DELIVERED_SECONDS = 60.0
"""The delivering task tries after 1, 2, 4, … seconds."""
MIB = 1 << 20


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """An S3 server with a bucket."""
    with running(tmp_path / "s3") as started:
        asyncio.run(make_bucket(started.url))
        yield started


async def make_bucket(endpoint_url: str) -> None:
    """Makes the bucket."""
    async with get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint_url,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    ) as client:
        await client.create_bucket(Bucket=BUCKET)


def settings(gateway: Gateway, tmp_path: Path) -> dict[str, Any]:
    """Of a server that stores there, with a spool of its own."""
    (tmp_path / "id").write_text(ACCESS_KEY_ID)
    (tmp_path / "secret").write_text(SECRET_ACCESS_KEY)
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    for name in ("bin", "images", "layers"):
        if not (data / name).exists():
            (data / name).symlink_to(DATA_DIR / name)
    return {
        "DATA_DIR": str(data),
        "POOL__MAX": "0",
        "ARTIFACTS__STORE": "s3",
        "ARTIFACTS__S3__BUCKET": BUCKET,
        "ARTIFACTS__S3__PREFIX": "run/",
        "ARTIFACTS__S3__ENDPOINT_URL": gateway.url,
        "ARTIFACTS__S3__ACCESS_KEY_ID_FILE": str(tmp_path / "id"),
        "ARTIFACTS__S3__SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret"),
    }


@pytest.fixture
def server(gateway: Gateway, tmp_path: Path) -> Iterator[Server]:
    """A server that stores there."""
    with running_server(**settings(gateway, tmp_path)) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of it."""
    with Client(server.address) as connected:
        yield connected


def download(url: str) -> tuple[bytes, dict[str, str]]:
    """What the URL gives, and its headers in lower case."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


def is_there(url: str) -> bool:
    """Whether the URL gives something by now."""
    try:
        download(url)
    except (urllib.error.URLError, OSError):
        return False
    return True


def waiting(tmp_path: Path) -> list[Path]:
    """What is in the spool."""
    return [file for file in (tmp_path / "data" / "spool").iterdir() if file.is_file()]


CODE = """
import os
os.mkdir('out')
open('out/räport.html', 'w').write('<script>alert(1)</script>')
open('large.bin', 'wb').write(bytes(range(256)) * 40_000)
open('empty', 'w').close()
'x' * 2_000_000
"""


def test_artifacts_and_a_large_result_are_uploaded_and_downloaded_by_presigned_url(
    client: Client, tmp_path: Path, gateway: Gateway
) -> None:
    """With content type, disposition, size and hash; nothing stays on the server's disk."""
    result = client.execute(CODE).check()
    assert [artifact.name for artifact in result.artifacts] == ["out/räport.html", "large.bin", "empty"]
    assert result.result_artifact is not None
    for artifact in (*result.artifacts, result.result_artifact):
        assert artifact.state is ArtifactState.AVAILABLE
        assert artifact.download_url.startswith(gateway.url)
        assert SECRET_ACCESS_KEY not in artifact.download_url
        content, headers = download(artifact.download_url)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (artifact.size_bytes, artifact.sha256)
        assert headers["content-type"] == artifact.content_type
        assert headers["content-disposition"].startswith("attachment")
    large = result.artifacts[1]
    again = client.execute(
        "import hashlib\nhashlib.sha256(open('in/put', 'rb').read()).hexdigest()", input_files={"in/put": large}
    ).check()
    assert again.value == large.sha256
    assert again.artifacts == ()
    assert waiting(tmp_path) == []


def test_store_that_goes_down_during_an_execution_makes_it_pending_and_it_arrives_at_the_same_url(
    server: Server, client: Client, tmp_path: Path, gateway: Gateway
) -> None:
    """The client is told; an artifact that waits can be an input already."""
    for event in client.stream("import time\nprint('here', flush=True)\ntime.sleep(1)\nopen('a', 'w').write('kept')"):
        if type(event).__name__ == "Output":
            gateway.kill()
        last = event
    artifacts: tuple[Artifact, ...] = getattr(last, "artifacts", ())
    assert [(each.name, each.state) for each in artifacts] == [("a", ArtifactState.PENDING)]
    assert not is_there(artifacts[0].download_url)
    assert client.execute("open('b').read()", input_files={"b": artifacts[0]}).check().value == "kept"
    began = time.monotonic()
    second = client.execute("open('c', 'w').write('later')").check().artifacts[0]
    assert second.state is ArtifactState.PENDING
    assert time.monotonic() - began < 20, "a store that is known to be down is not waited for"
    gateway.start()
    wait_until(lambda: is_there(artifacts[0].download_url), "the first arrives", DELIVERED_SECONDS)
    wait_until(lambda: is_there(second.download_url), "the second arrives", DELIVERED_SECONDS)
    assert download(artifacts[0].download_url)[0] == b"kept"
    wait_until(lambda: waiting(tmp_path) == [], "nothing is kept twice")
    assert client.execute("open('d', 'w').write('d')").check().artifacts[0].state is ArtifactState.AVAILABLE


def test_what_waits_survives_a_server_that_is_killed(tmp_path: Path, gateway: Gateway) -> None:
    """PENDING is a promise: the next server keeps it."""
    chosen = settings(gateway, tmp_path)
    with running_server(**chosen) as first, Client(first.address) as client:
        gateway.kill()
        artifact = client.execute("open('a', 'w').write('promised')").check().artifacts[0]
        assert artifact.state is ArtifactState.PENDING
        first.process.kill()
        first.process.wait()
    gateway.start()
    with running_server(**chosen):
        wait_until(lambda: is_there(artifact.download_url), "it arrives", DELIVERED_SECONDS)
    assert download(artifact.download_url)[0] == b"promised"


def test_store_that_fails_every_request_makes_it_pending(server: Server, client: Client, gateway: Gateway) -> None:
    """A bucket that nobody can write to: every answer is an error, none of it is the code's fault."""
    bucket = gateway.objects / BUCKET
    hidden = gateway.objects.parent / "hidden"
    bucket.rename(hidden)
    bucket.write_text("a file where versitygw wants a folder")
    result = client.execute("open('a', 'w').write('kept')\n'done'").check()
    assert result.value == "done"
    assert [artifact.state for artifact in result.artifacts] == [ArtifactState.PENDING]
    bucket.unlink()
    hidden.rename(bucket)
    url = result.artifacts[0].download_url
    wait_until(lambda: is_there(url), "it arrives", DELIVERED_SECONDS)
    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
    assert any(line["event"] == "artifact_store_down" for line in lines)


def test_server_stops_in_time_while_the_store_is_down(server: Server, client: Client, gateway: Gateway) -> None:
    """What waits stays on the disk; nobody waits for it."""
    gateway.kill()
    assert client.execute("open('a', 'w').write('a')").check().artifacts[0].state is ArtifactState.PENDING
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 20
