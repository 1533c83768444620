"""Run a process of the product with a wrong wall clock: `python -m tests.chaos.offset_clock SECONDS COMMAND`.

Its monotonic clock stays right, as on a machine whose time was set wrong.
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    offset = float(sys.argv[1])
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + offset
    time.time_ns = lambda: true_time_ns() + int(offset * 1_000_000_000)
    sys.argv = ["coffee-rt", *sys.argv[2:]]
    from coffee_rt.cli import main as run

    run()


if __name__ == "__main__":
    main()
