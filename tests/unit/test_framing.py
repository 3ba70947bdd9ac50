"""The framing between host, agent and workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar_server.guest import framing

FRAMES = st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=200)), max_size=8)


@given(FRAMES, st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[tuple[bytes, bytes]], step: int) -> None:
    """The stream has no borders of its own."""
    stream = b"".join(framing.pack(kind, payload) for kind, payload in frames)
    unpacker = framing.Unpacker()
    found = [frame for at in range(0, len(stream), step) for frame in unpacker.feed(stream[at : at + step])]
    assert found == frames


@pytest.mark.parametrize("size", [framing.MAX_PAYLOAD + 1, 1 << 31, (1 << 32) - 1])
def test_frame_that_claims_too_much_is_refused_before_its_bytes_come(size: int) -> None:
    """A length of 4 GiB costs the reader nothing."""
    with pytest.raises(framing.BrokenFrame):
        framing.Unpacker().feed(framing.HEADER.pack(framing.DATA, size))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_are_refused(noise: bytes) -> None:
    """Nothing else can happen."""
    unpacker = framing.Unpacker(max_payload=1000)
    try:
        frames = unpacker.feed(noise)
    except framing.BrokenFrame:
        return
    assert sum(framing.HEADER.size + len(payload) for _, payload in frames) <= len(noise)
