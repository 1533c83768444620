"""What a reader beside the supervisor may rely on."""

import threading
from pathlib import Path

from coffee_rt.embedded.supervisor import Part, Supervisor


class Running:
    """A process that runs, with a long id (so that half of it would show)."""

    pid = 1_234_567

    def poll(self) -> int | None:
        return None

    def send_signal(self, signal: int) -> None:
        raise AssertionError(f"not to be sent {signal}")


async def test_pid_file_is_never_seen_half_written(tmp_path: Path) -> None:
    """A restart rewrites it while a script may be reading: old or new, never empty."""

    async def launch() -> Running:
        return Running()

    async def probe() -> bool:
        return True

    supervisor = Supervisor(say=lambda _: None, pids=tmp_path / "pids")
    part = Part("order-api", launch=launch, probe=probe, log=tmp_path / "log")
    await supervisor.launch(part)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((tmp_path / "pids" / "order-api").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3_000):
        await supervisor.launch(part)
    done.set()
    reader.join()
    assert seen == {"1234567\n"}
