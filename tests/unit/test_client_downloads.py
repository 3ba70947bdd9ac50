"""Fetching artifacts whose names, sizes and contents want to do harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import belljar_client as bc
from belljar.v1 import sandbox_pb2
from belljar_client.results import event_of
from tests.unit.fake_sandbox_service import FakeDownloads, serving_downloads, succeeded


@pytest.fixture
def downloads() -> Iterator[FakeDownloads]:
    """A fake object store."""
    with serving_downloads() as downloads:
        yield downloads


def artifact_of(message: sandbox_pb2.Artifact) -> bc.Artifact:
    """The artifact as a result has it."""
    event = event_of(succeeded(1, artifacts=[message]))
    assert isinstance(event, bc.Finished)
    return event.artifacts[0]


def files_below(directory: Path) -> list[str]:
    """Every file there, by relative path."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def test_artifact_arrives_whole_with_progress(downloads: FakeDownloads, tmp_path: Path) -> None:
    """Nested names become directories, and progress ends at the size."""
    content = bytes(range(256)) * 4096
    seen: list[tuple[int, int]] = []
    artifact = artifact_of(downloads.artifact("out/data.bin", content))
    path = bc.download(artifact, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "out" / "data.bin"
    assert path.read_bytes() == content
    assert seen[-1] == (len(content), len(content))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_empty_artifact_and_older_file(downloads: FakeDownloads, tmp_path: Path) -> None:
    """Zero bytes are a file too, and it takes the place of an older one."""
    (tmp_path / "e").write_text("older")
    assert bc.download(artifact_of(downloads.artifact("e", b"")), tmp_path).read_bytes() == b""
    assert files_below(tmp_path) == ["e"]


@pytest.mark.parametrize(
    "lie",
    [
        {"sha256": "0" * 64},
        {"size_bytes": 3},
        {"size_bytes": 5},
        {"download_url": "file:///etc/passwd"},
        {"download_url": "ftp://127.0.0.1/x"},
        {"download_url": "http://[::1"},
        {"download_url": ""},
        {"download_url": "http://127.0.0.1:1/refused"},
        {"state": sandbox_pb2.ARTIFACT_STATE_PENDING},
    ],
)
def test_what_is_not_the_artifact_leaves_no_file(downloads: FakeDownloads, tmp_path: Path, lie: dict[str, Any]) -> None:
    """Wrong hash, too long, too short, another scheme, nobody there, not stored yet: an error and a clean directory."""
    with pytest.raises(bc.DownloadFailed):
        bc.download(artifact_of(downloads.artifact("f", b"four", **lie)), tmp_path)
    assert files_below(tmp_path) == []


def test_expired_url_says_what_the_server_answered(downloads: FakeDownloads, tmp_path: Path) -> None:
    """The HTTP status is in the message."""
    artifact = artifact_of(downloads.artifact("f", b"x"))
    downloads.contents.clear()
    with pytest.raises(bc.DownloadFailed, match="410"):
        bc.download(artifact, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "_/_/etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("a//./b", "a/b"),
        ("", "_"),
        ("..", "_"),
        ("...", "_"),
        ("C:\\Windows\\x", "C__Windows_x"),
        ("NUL", "_NUL"),
        ("com1.txt", "_com1.txt"),
        ("dir/aux/x", "dir/_aux/x"),
        ("console.txt", "console.txt"),
        ("a\nb\x1b[31m\x00", "a_b_[31m_"),
        ("exe\u202efdp.txt", "exe_fdp.txt"),
        ("dot.", "dot_"),
        ("space ", "space_"),
        (".bashrc", ".bashrc"),
        ("naïve 漢字.csv", "naïve 漢字.csv"),
        ("%2e%2e%2fx", "%2e%2e%2fx"),
    ],
)
def test_hostile_names_become_harmless(name: str, expected: str) -> None:
    """Climbing, devices, control characters, turned text: all of it shows and none of it works."""
    assert bc.local_paths([name]) == [PurePosixPath(expected)]


def test_names_that_fall_together_stay_apart() -> None:
    """Two artifacts never overwrite each other, not even where case does not count."""
    assert [str(path) for path in bc.local_paths(["a:b.txt", "a?b.txt", "A_B.TXT", "d/x", "d//x"])] == [
        "a_b.txt",
        "a_b (2).txt",
        "A_B (3).TXT",
        "d/x",
        "d/x (2)",
    ]


def test_long_names_keep_their_extension_and_differ() -> None:
    """A name of 255 bytes is cut where a character ends; what was cut off still tells two names apart."""
    first, second = bc.local_paths(["é" * 120 + "1.tar", "é" * 120 + "2.tar"])
    assert first.suffix == ".tar"
    assert first != second
    assert len(str(first).encode()) <= 200


@given(st.lists(st.text(max_size=300), max_size=8))
def test_any_names_are_distinct_relative_paths(names: list[str]) -> None:
    """Whatever the names are, the paths stay below, fit into a file system and are all different."""
    paths = bc.local_paths(names)
    assert len({str(path).casefold() for path in paths}) == len(names)
    for path in paths:
        assert not path.is_absolute()
        assert path.parts
        for part in path.parts:
            assert part not in (".", "..")
            assert len(part.encode()) <= 255
            assert not set(part) & set("/\\:\0\n")


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x", ""])
def test_path_given_by_the_caller_stays_below_too(downloads: FakeDownloads, tmp_path: Path, path: str) -> None:
    """The same rule for a name of the caller's own."""
    with pytest.raises(bc.DownloadFailed):
        bc.download(artifact_of(downloads.artifact("f", b"x")), tmp_path / "in", path=path)
    assert files_below(tmp_path) == []


def test_links_in_the_directory_are_not_followed(downloads: FakeDownloads, tmp_path: Path) -> None:
    """A directory link is refused, a file link is replaced; what they point to stays as it was."""
    target, outside = tmp_path / "in", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / "file").write_text("mine")
    (target / "dir").symlink_to(outside)
    (target / "link").symlink_to(outside / "file")
    with pytest.raises(bc.DownloadFailed, match="in the way"):
        bc.download(artifact_of(downloads.artifact("dir/file", b"theirs")), target)
    assert bc.download(artifact_of(downloads.artifact("link", b"theirs")), target).read_bytes() == b"theirs"
    assert (outside / "file").read_text() == "mine"
    assert files_below(outside) == ["file"]


def test_directory_in_the_way_is_an_error(downloads: FakeDownloads, tmp_path: Path) -> None:
    """A file cannot take the place of a directory, nor go below a file."""
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("")
    for name in ("d", "f/x"):
        with pytest.raises(bc.DownloadFailed, match="in the way"):
            bc.download(artifact_of(downloads.artifact(name, b"x")), tmp_path)
