"""The part of inetd that a server needs which serves one session on its standard input: `inetd.py PORT COMMAND...`."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading


def serve(session: socket.socket, command: list[str]) -> None:
    """Run the server for one session."""
    with session:
        subprocess.run(command, stdin=session, stdout=session, check=False)


def main() -> None:
    """Listen on loopback until killed."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
        while True:
            session, _ = listener.accept()
            threading.Thread(target=serve, args=(session, sys.argv[2:])).start()


if __name__ == "__main__":
    main()
