#!/usr/bin/python3 -IS
"""The little of valkey-cli that the chart's scripts use, for machines without one: -e, -h, -p, a command.

Answers are printed as valkey-cli prints them into a pipe: bulk strings and array items as lines, nil as an
empty one. Exit code 1 without a connection, and with -e for an error.
"""

import os
import socket
import sys
from typing import BinaryIO


def read(stream: BinaryIO) -> tuple[str, bool]:
    """An answer as text, and whether it is an error."""
    line = stream.readline()
    if not line:
        raise OSError("closed")
    kind, rest = line[:1], line[1:].strip().decode(errors="replace")
    if kind == b"-":
        return rest, True
    if kind == b"$":
        if int(rest) < 0:
            return "", False
        return stream.read(int(rest) + 2)[:-2].decode(errors="replace"), False
    if kind == b"*":
        return "\n".join(read(stream)[0] for _ in range(max(int(rest), 0))), False
    return rest, False


def main() -> int:
    arguments, host, port, is_strict = sys.argv[1:], "127.0.0.1", 6379, False
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option == "-e":
            is_strict = True
        elif option == "-h":
            host = arguments.pop(0)
        elif option == "-p":
            port = int(arguments.pop(0))
        else:
            raise SystemExit(f"option {option} is not known here")
    try:
        with (
            socket.create_connection((host, port)) as connection,
            connection.makefile("rb") as stream,
        ):
            for command in (["AUTH", os.environ["VALKEYCLI_AUTH"]], arguments):
                connection.sendall(
                    b"*%d\r\n" % len(command)
                    + b"".join(
                        b"$%d\r\n%s\r\n" % (len(part), part) for part in map(str.encode, command)
                    )
                )
                text, is_error = read(stream)
    except OSError:
        return 1
    sys.stdout.write(f"{text}\n")
    return 1 if is_error and is_strict else 0


sys.exit(main())
