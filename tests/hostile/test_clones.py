"""Sandboxes that are copies of one snapshot have nothing random in common."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from belljar_client import Result
from belljar_server.runtimes import load
from tests.conftest import Server, wait_until
from tests.integration.pools import SETTLED, pool

pytestmark = pytest.mark.hostile

CLONES = 8
HELD_SECONDS = 1.5
"""Each copy stays so long, so that all of them exist at the same time."""

PYTHON = f"""
import os, random, secrets, ssl, tempfile, time, uuid

def hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="example.com")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()

first, second = hello(), hello()
def main():
    drawn = {{
        "hash seed": hash("belljar"),
        "hash seed of bytes": hash(b"belljar"),
        "random": random.random(),
        "random.getrandbits": random.getrandbits(64),
        "random.Random": random.Random().random(),
        "random.SystemRandom": random.SystemRandom().random(),
        "uuid1": uuid.uuid1().hex,
        "node of uuid1": uuid.getnode(),
        "uuid4": uuid.uuid4().hex,
        "secrets": secrets.token_hex(),
        "urandom": os.urandom(16).hex(),
        "getrandom": os.getrandom(16).hex(),
        "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
        "TLS client random": first[11:43].hex(),
        "TLS session id": first[44:76].hex(),
        "next TLS client random": second[11:43].hex(),
        "mktemp": tempfile.mktemp(),
        "mkdtemp": tempfile.mkdtemp(),
        "NamedTemporaryFile": tempfile.NamedTemporaryFile().name,
    }}
    time.sleep({HELD_SECONDS})
    return drawn
"""

PYTHON_IN_A_CHILD = f"""
import os, subprocess, sys, time
parts = subprocess.run(
    [sys.executable, "-c", "import random, uuid; print(random.random(), uuid.uuid4(), hash('belljar'))"],
    capture_output=True, text=True, check=True,
).stdout.split()
reader, writer = os.pipe()
if os.fork() == 0:
    import random
    os.write(writer, str(random.random()).encode())
    os._exit(0)
os.wait()
parts.append(os.read(reader, 100).decode())
time.sleep({HELD_SECONDS})
return dict(zip(["random", "uuid4", "hash seed", "random of a fork"], parts))
"""

NODE = """
import crypto from 'node:crypto';
import fs from 'node:fs';
import tls from 'node:tls';
import { Duplex } from 'node:stream';

const hello = () => new Promise((resolve) => {
  const stream = new Duplex({
    read() {},
    write(chunk, _encoding, done) { resolve(chunk); done(); },
  });
  tls.connect({ socket: stream, servername: 'example.com' }).on('error', () => {});
});

export async function main() {
  const [first, second] = [await hello(), await hello()];
  const drawn = {
    'Math.random': Math.random(),
    'next Math.random': Math.random(),
    'crypto.randomUUID': crypto.randomUUID(),
    'crypto.randomUUID without cache': crypto.randomUUID({ disableEntropyCache: true }),
    'crypto.getRandomValues': Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString('hex'),
    'web randomUUID': globalThis.crypto.randomUUID(),
    'crypto.randomBytes': crypto.randomBytes(16).toString('hex'),
    'crypto.randomInt': crypto.randomInt(2 ** 47),
    'generated key': crypto.generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' }).d,
    'TLS client random': first.subarray(11, 43).toString('hex'),
    'TLS session id': first.subarray(44, 76).toString('hex'),
    'next TLS client random': second.subarray(11, 43).toString('hex'),
    mkdtemp: fs.mkdtempSync('/tmp/'),
  };
  await new Promise((resolve) => setTimeout(resolve, HELD));
  return drawn;
}
""".replace("HELD", str(int(HELD_SECONDS * 1000)))

NODE_IN_A_WORKER = f"""
const {{ Worker }} = require('node:worker_threads');
const vm = require('node:vm');
const source = "require('node:worker_threads').parentPort.postMessage([Math.random(), crypto.randomUUID()])";
async function main() {{
  const worker = new Worker(source, {{ eval: true }}); const [random, uuid] = await new Promise((resolve, reject) =>
  worker.on('message', resolve).on('error', reject)); await new Promise((resolve) => setTimeout(resolve,
  {int(HELD_SECONDS * 1000)})); return {{ 'Math.random': random, 'crypto.randomUUID': uuid, 'Math.random of a realm':
  vm.runInNewContext('Math.random()') }};
}}
"""

Run = Callable[..., Result]


def draw(run: Run, code: str, runtime: str) -> list[dict[str, Any]]:
    """What copies that exist at the same time draw."""
    with ThreadPoolExecutor(CLONES) as threads:
        futures = [threads.submit(run, code, runtime) for _ in range(CLONES)]
        return [future.result().check().value for future in futures]


def in_common(drawn: list[dict[str, Any]]) -> set[str]:
    """What two of them drew alike."""
    return {name for one, other in itertools.combinations(drawn, 2) for name in one if one[name] == other[name]}


def repeated(one: dict[str, Any]) -> set[str]:
    """What one of them drew twice; hashes are not drawn."""
    values = [value for name, value in one.items() if not name.startswith("hash")]
    return {value for value in values if values.count(value) > 1}


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", PYTHON),
        ("python", PYTHON_IN_A_CHILD),
        ("javascript", NODE),
        ("javascript", NODE_IN_A_WORKER),
        ("typescript", NODE),
    ],
    ids=["python", "python children", "javascript", "javascript threads", "typescript"],
)
def test_eight_copies_at_once_have_nothing_random_in_common(hit: Run, server: Server, runtime: str, code: str) -> None:
    """Pairwise, whatever a program can draw: numbers, UUIDs, keys, TLS hellos, temporary names, hash seeds."""
    # A server that has just started has not read all of them yet.
    wait_until(lambda: pool(server, runtime)["snapshots"] == load()[runtime].snapshots, "all snapshots", SETTLED)
    drawn = draw(hit, code, runtime)
    assert len(drawn) == CLONES
    assert all(drawn[0].keys() == one.keys() for one in drawn)
    assert in_common(drawn) == set()
    if code is not NODE_IN_A_WORKER:  # a realm and a thread of one program have Math.random in common
        assert [repeated(one) for one in drawn] == [set()] * CLONES


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import random, uuid, tempfile\n[random.random(), uuid.uuid1().hex, tempfile.mktemp()]"),
        ("javascript", "[Math.random(), crypto.randomUUID()]"),
        ("typescript", "[Math.random(), crypto.randomUUID()]"),
    ],
)
def test_copies_one_after_the_other_have_nothing_random_in_common(hit: Run, runtime: str, code: str) -> None:
    """Nobody can draw what the next one will."""
    drawn = [value for _ in range(CLONES) for value in hit(code, runtime).check().value]
    assert len(set(drawn)) == len(drawn)


def test_seeding_is_still_repeatable(hit: Run) -> None:
    """A program that seeds its generator gets the same numbers in every copy, as everywhere."""
    code = "import random\nrandom.seed(7)\n[random.random() for _ in range(3)]"
    assert (
        hit(code).check().value
        == hit(code).check().value
        == [0.32383276483316237, 0.15084917392450192, 0.6509344730398537]
    )


@pytest.mark.parametrize(
    ("runtime", "code"), [("python", "import time\ntime.time()"), ("javascript", "Date.now() / 1000")]
)
def test_the_clock_of_a_copy_is_right(hit: Run, runtime: str, code: str) -> None:
    """A copy wakes up now and not when its snapshot was taken."""
    before = time.time()
    told = hit(code, runtime).check().value
    assert before - 1 < told < time.time() + 1
