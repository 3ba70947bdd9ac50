"""What `belljar doctor` says about a host, and what `serve`, `setup` and `doctor` answer on the command line."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar_server import __main__ as command_line
from belljar_server import setup
from belljar_server.config import Egress, Settings
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.setup import doctor, system, trial
from belljar_server.setup.doctor import Finding, Status


def findings(name: str, settings: Settings) -> list[Finding]:
    """What one check finds."""
    return list(doctor.CHECKS[name](settings))


def only(name: str, settings: Settings) -> Finding:
    """The one thing that a check finds."""
    (finding,) = findings(name, settings)
    return finding


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own."""
    return Settings(data_dir=tmp_path / "not" / "there" / "yet")


def test_another_machine_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gVisor does not run on is told by name."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    finding = only("machine", settings)
    assert finding.status is Status.FAIL
    assert "riscv64" in finding.found


def test_without_root_it_fails_and_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing works without root, so that comes first."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert only("root", settings).status is Status.FAIL


def test_missing_runsc_and_images_name_the_command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was never set up needs one command."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("runsc", "images", "sandboxes"):
        for finding in findings(name, settings):
            assert finding.status is Status.FAIL
            assert finding.remedy == "run `belljar setup`"


def test_limit_that_cannot_be_enforced_fails_unless_it_is_waived(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor judges limits as the service does."""
    monkeypatch.setattr(trial, "unenforceable", lambda _: {"cpus": "no cgroup hierarchy has the cpu controller"})
    refused = only("cgroups", settings)
    assert refused.status is Status.FAIL
    assert 'limits.waived = ["cpus"]' in refused.remedy
    limits = settings.limits.model_copy(update={"waived": frozenset({"cpus"})})
    assert only("cgroups", settings.model_copy(update={"limits": limits})).status is Status.WARN


def test_port_in_use_is_a_warning(settings: Settings) -> None:
    """A server that runs already is the usual reason, and no fault of the host."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        grpc = settings.grpc.model_copy(update={"listen": listen})
        http = settings.http.model_copy(update={"listen": "127.0.0.1:0"})
        found = findings("ports", settings.model_copy(update={"grpc": grpc, "http": http}))
    assert [finding.status for finding in found] == [Status.WARN, Status.OK]
    assert listen in found[0].found


@pytest.mark.parametrize(("least", "status"), [(0, {Status.OK, Status.WARN}), (1 << 60, {Status.FAIL})])
def test_space_is_judged_by_the_setting(settings: Settings, least: int, status: set[Status]) -> None:
    """Below min_free_bytes the service refuses executions, so the doctor fails, also before data_dir exists."""
    artifacts = settings.artifacts.model_copy(update={"min_free_bytes": least})
    assert only("space", settings.model_copy(update={"artifacts": artifacts})).status in status


def test_missing_build_tools_are_a_warning_with_their_packages(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is set up serves without them."""
    monkeypatch.setattr(system, "PROGRAMS", {"no-such-program": "its-package"})
    monkeypatch.setattr(system, "FILES", {})
    finding = only("build tools", settings)
    assert finding.status is Status.WARN
    assert "apt-get install its-package" in finding.remedy


def test_check_that_breaks_is_a_finding_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor is needed most where things are broken."""

    def broken(_: Settings) -> Iterator[Finding]:
        raise HostNotReady("it broke")
        yield

    def fine(_: Settings) -> Iterator[Finding]:
        yield Finding("fine", Status.OK, "fine")

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "fine": fine})
    assert [(f.name, f.status, f.found) for f in doctor.examine(settings)] == [
        ("broken", Status.FAIL, "it broke"),
        ("fine", Status.OK, "fine"),
    ]


@pytest.mark.parametrize(("status", "code"), [(Status.OK, 0), (Status.WARN, 0), (Status.FAIL, 1)])
def test_doctor_exits_with_1_only_for_a_fail(
    status: Status, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts can ask the doctor; --json gives them every finding."""
    monkeypatch.setattr(doctor, "CHECKS", {"x": lambda _: iter([Finding("x", status, "found", "do this")])})
    assert command_line.main(["doctor"]) == code
    assert "-> do this" in capsys.readouterr().out
    assert command_line.main(["doctor", "--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed == [{"name": "x", "status": status.value, "found": "found", "remedy": "do this"}]


def test_wrong_settings_exit_with_78_and_name_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Supervisors know from EX_CONFIG that a restart does not help."""
    file = tmp_path / "belljar.toml"
    file.write_text("[grpc]\nlisten_on = 1\n")
    assert command_line.main(["serve", "--config", str(file)]) == 78
    assert "grpc.listen_on" in capsys.readouterr().err


def test_host_that_is_not_ready_exits_with_1_and_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what the operator can mend."""

    def not_ready(*_: object, **__: object) -> bool:
        raise HostNotReady("no space here")

    monkeypatch.setattr(setup, "prepare", not_ready)
    assert command_line.main(["setup"]) == 1
    assert capsys.readouterr().err == "belljar: no space here\n"


@pytest.mark.parametrize(("did", "text"), [(True, "ready;"), (False, "nothing to do;")])
def test_setup_tells_whether_there_was_something_to_do(
    did: bool, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run is as clear as the first."""
    monkeypatch.setattr(setup, "prepare", lambda *_, **__: did)
    assert command_line.main(["setup"]) == 0
    assert text in capsys.readouterr().out


def test_print_config_shows_the_effective_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the service would use can be seen without starting it."""
    monkeypatch.setenv("BELLJAR_GRPC__LISTEN", "127.0.0.1:1234")
    assert command_line.main(["serve", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["grpc"]["listen"] == "127.0.0.1:1234"


def test_setup_without_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostNotReady, match="needs root"):
        setup.prepare(Settings(data_dir=tmp_path), lambda _: None)


def test_missing_packages_are_named_where_they_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another distribution, or without root, the message is the list to install."""
    monkeypatch.setattr(system, "PROGRAMS", {"no-such-program": "its-package"})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostNotReady, match="its-package"):
        system.install_missing(lambda _: None, system.missing_packages())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostNotReady, match="not Debian or Ubuntu"):
        system.install_missing(lambda _: None, system.missing_packages())


def test_mirrors_of_the_host_are_used_for_the_images_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's own mirror serves trixie as it serves the host's release; other vendors' sources are left alone."""
    listed = [
        "Debian\tbookworm\tmain\thttp://mirror.example/debian/",
        "Debian\tbookworm-updates\tmain\thttp://mirror.example/debian/",
        "Debian\tbookworm-security\tmain\thttp://mirror.example/security/",
        "Debian\tbookworm-backports\tmain\thttp://mirror.example/debian/",
        "Debian\tbookworm\tcontrib\thttp://mirror.example/debian/",
        "Other\tstable\tmain\thttp://other.example/",
    ]
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(listed) + "\nEND\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert system.debian_sources("trixie") == [
        "deb http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/debian/ trixie-updates main",
        "deb http://mirror.example/security/ trixie-security main",
    ]


def test_networks_are_tried_and_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A warning where networks are not asked for, a failure where the settings promise them."""

    def fail() -> None:
        raise SandboxFailed("no network for a sandbox: not permitted")

    monkeypatch.setattr("belljar_server.egress.namespace.make", fail)
    monkeypatch.setattr(system, "LIBRARIES", {})
    for egress, status in (
        (Egress(), Status.WARN),
        (Egress(modes=frozenset({"full"})), Status.FAIL),
        (Egress(modes=frozenset({"none"})), Status.OK),
    ):
        assert [found.status for found in findings("networks", Settings(data_dir=tmp_path, egress=egress))] == [status]
    monkeypatch.setattr(system, "LIBRARIES", {"libnone.so.0": "its-package"})
    assert "its-package" in only("networks", Settings(data_dir=tmp_path)).found
