"""Settings from file and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar_server.config import load, split_address
from belljar_server.errors import HostNotReady


def write(tmp_path: Path, text: str) -> Path:
    """A settings file."""
    file = tmp_path / "belljar.toml"
    file.write_text(text)
    return file


def test_environment_wins_over_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section in both is merged, not replaced."""
    file = write(tmp_path, "[limits.default]\ntimeout = 5\nprocesses = 50\n")
    monkeypatch.setenv("BELLJAR_LIMITS__DEFAULT__TIMEOUT", "7")
    default = load(file).limits.default
    assert (default.timeout, default.processes) == (7.0, 50)


@pytest.mark.parametrize("text", ["nonsense = 1", "[grpc]\nlisten_on = 'x'", "[limits.max]\nfoo = 1"])
def test_unknown_key_in_the_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    """A typing error is no setting."""
    with pytest.raises(HostNotReady, match=r"nonsense|listen_on|foo"):
        load(write(tmp_path, text))


@pytest.mark.parametrize("name", ["BELLJAR_NONSENSE", "BELLJAR_GRPC__LISTEN_ON", "BELLJAR_GRPC__LISTEN__X"])
def test_unknown_variable_is_refused_by_name(name: str) -> None:
    """The same in the environment."""
    with pytest.raises(HostNotReady, match=name):
        load(None, {name: "1"})


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:50051", "example.com:1"])
@pytest.mark.parametrize("section", ["GRPC", "HTTP"])
def test_other_address_than_loopback_needs_the_words(
    monkeypatch: pytest.MonkeyPatch, section: str, listen: str
) -> None:
    """Plaintext without tokens on a public address must be meant."""
    monkeypatch.setenv(f"BELLJAR_{section}__LISTEN", listen)
    with pytest.raises(HostNotReady, match="insecure_public_plaintext"):
        load(None)
    monkeypatch.setenv("BELLJAR_INSECURE_PUBLIC_PLAINTEXT", "true")
    assert load(None)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_nothing(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    """All ways to say it."""
    monkeypatch.setenv("BELLJAR_GRPC__LISTEN", listen)
    assert load(None).grpc.listen == listen


@pytest.mark.parametrize("address", ["", "x", "x:", ":1", "x:y", "x:65536", "x:-1", "x:1e3"])
def test_broken_address_is_refused(address: str) -> None:
    """With the form that is wanted."""
    with pytest.raises(ValueError, match="host:port"):
        split_address("grpc.listen", address)


def test_default_above_its_ceiling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two would contradict each other in every request."""
    monkeypatch.setenv("BELLJAR_LIMITS__MAX__TIMEOUT", "5")
    with pytest.raises(HostNotReady, match=r"limits\.default\.timeout is 30"):
        load(None)
