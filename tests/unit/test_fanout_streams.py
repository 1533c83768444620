"""Event streams: bounded, and read at the client's pace."""

from __future__ import annotations

from coffee_rt.fanout.frames import Frame, message, websocket_text
from coffee_rt.fanout.protocol import Resume, parse_mark
from coffee_rt.fanout.streams import BUFFER_BYTES_HIGH, StreamSocket


async def test_a_reader_that_falls_behind_is_congested_until_it_has_caught_up() -> None:
    socket = StreamSocket()
    woken: list[bool] = []
    socket.on_writable = lambda: woken.append(socket.is_congested)
    part = b"x" * 10_000
    while not socket.is_congested:
        socket.write(part)
    written = BUFFER_BYTES_HIGH // len(part) + 1
    socket.close(1000, "done")
    assert [data async for data in socket.read()] == [part] * written
    assert woken == [False]


def test_an_event_carries_what_it_resumes_from() -> None:
    assert message("heartbeat", at_ms=1).as_stream() == (
        b'event: heartbeat\ndata: {"type":"heartbeat","at_ms":1}\n\n'
    )
    marked = Frame("versions", b"{}", "1.7.1:3,4").as_stream()
    assert marked == b"event: versions\nid: 1.7.1:3,4\ndata: {}\n\n"
    assert parse_mark("1.7.1:3,4") == Resume("1.7.1", [3, 4])


def test_strange_marks_resume_nothing() -> None:
    for mark in ("", ":", "1.7.1", "1.7.1:", "1.7.1:x", ":1,2", "e:" + ",".join("1" * 65)):
        assert parse_mark(mark) is None


def test_frames_of_every_size_are_framed_as_the_rfc_says() -> None:
    assert websocket_text(b"a" * 125)[:2] == b"\x81\x7d"
    assert websocket_text(b"a" * 126)[:4] == b"\x81\x7e\x00\x7e"
    assert websocket_text(b"a" * 70_000)[:10] == b"\x81\x7f" + (70_000).to_bytes(8, "big")
