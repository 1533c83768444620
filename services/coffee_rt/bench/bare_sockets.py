"""The ceiling of the fan-out: a picows server that sends one payload to all its sockets, and nothing else.

Run as `python -m coffee_rt.bench.bare_sockets`; any text message from one of the sockets starts a broadcast.
COFFEE_RT_HTTP_PORT is where it listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from coffee_rt.runtime.environment import load
from coffee_rt.runtime.files import ensure_open_files
from coffee_rt.runtime.settings import ProcessSettings

PAYLOAD_BYTES = 440


class _Echo(WSListener):
    def __init__(self, transports: list[WSTransport], broadcast: Callable[[], None]) -> None:
        self._transports = transports
        self._broadcast = broadcast

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transports.append(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT and frame.get_payload_as_bytes() == b"next":
            self._broadcast()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._transports.remove(transport)


async def main() -> None:
    settings = load(ProcessSettings)
    ensure_open_files(settings.open_files_min)
    transports: list[WSTransport] = []
    payload = b"x" * PAYLOAD_BYTES

    def broadcast() -> None:
        for transport in transports:
            transport.send(WSMsgType.TEXT, payload)

    def accept(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        listener = _Echo(transports, broadcast)
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(), listener)

    server = await ws_create_server(
        accept, settings.http_host, settings.http_port, backlog=4096, enable_auto_ping=False
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
