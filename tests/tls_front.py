"""TLS in front of a Valkey or a PostgreSQL (the wheels' have none of their own), with certificates of an
authority made here."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@dataclass(frozen=True)
class Papers:
    """Files of one authority: its own certificate, a client's and a server's with their keys."""

    ca: Path
    client: Path
    client_key: Path
    served: Path
    served_key: Path
    server: ssl.SSLContext
    authority: trustme.CA

    def issue(self, folder: Path, client: str) -> tuple[Path, Path]:
        """Another client's certificate and key."""
        folder.mkdir(parents=True, exist_ok=True)
        issued = self.authority.issue_cert("till@example.org", common_name=client)
        return _write(issued, folder, "client")


def make_papers(folder: Path, host: str = "127.0.0.1", *, client: str = "till") -> Papers:
    """`host` is who the server's certificate is for, `client` the name in the client's."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert(host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    authority.configure_trust(context)
    till = authority.issue_cert("till@example.org", common_name=client)
    return Papers(
        folder / "ca.pem",
        *_write(till, folder, "client"),
        *_write(issued, folder, "server"),
        context,
        authority,
    )


def _write(issued: trustme.LeafCert, folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


@contextmanager
def tls_front(
    target_port: int, papers: Papers, *, port: int = 0, is_postgres: bool = False
) -> Iterator[int]:
    """A port that speaks TLS and passes everything on; served by a thread with a loop of its own.
    PostgreSQL's clients ask for TLS first; one that does not is hung up on."""
    front = _Front(target_port, papers.server, port, is_postgres)
    thread = threading.Thread(target=asyncio.run, args=(front.run(),))
    thread.start()
    front.is_listening.wait()
    try:
        yield front.port
    finally:
        front.stop()
        thread.join()


class _Front:
    def __init__(
        self, target_port: int, context: ssl.SSLContext, port: int, is_postgres: bool
    ) -> None:
        self._is_postgres = is_postgres
        self._target_port = target_port
        self._context = context
        self.port = port
        self.is_listening = threading.Event()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        at_once = None if self._is_postgres else self._context
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=at_once)
        self.port = server.sockets[0].getsockname()[1]
        self.is_listening.set()
        await self._stop.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        if self._is_postgres and not await self._upgrade(reader, writer):
            self._serving.discard(task)
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, back))
                pumps.create_task(_pump(there, writer))
        finally:
            self._serving.discard(task)

    async def _upgrade(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            if await reader.readexactly(8) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._context)
                return True
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.transport.abort()
        return False


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except (OSError, ssl.SSLError):
        return
    finally:
        target.transport.abort()
