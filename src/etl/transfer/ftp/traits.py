"""What a server is like beside its files: asked of a session that does nothing else, and told in words."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from etl.transfer.ftp import hashing
from etl.transfer.ftp.names import quoted_path
from etl.transfer.ftp.opening import port_in

if TYPE_CHECKING:
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.link import Link

_CONNECT_SECONDS = 3.0


def traits_of(link: Link) -> dict[str, str]:
    """Ask for working folder, binary mode and ports; return what came, and what the login showed: topic -> words."""
    control, pipelining = link.control, link.control.pipelining
    where = control.send("PWD").result()
    binary = control.send("TYPE", b"I").result()
    if pipelining.is_one_by_one:
        commands = "one by one, as it confuses those of one write: slower"
    else:
        commands = f"many in one write, answers {'in order' if pipelining.keeps_order else 'in an order not yet known'}"
    is_told = where.is_success and quoted_path(where.line) is not None
    return {
        "working folder": link.names.home if is_told else f"not told: {where.text}",
        "binary mode": "works" if binary.is_success else f"refused: {binary.text}",
        "EPSV": _way(control, "EPSV"),
        "PASV": _way(control, "PASV"),
        "commands": commands,
        "checksums": ", ".join(hashing.offered(link)) or "none",
    }


def _way(control: Control, command: str) -> str:
    """Have a port opened and connect to it, which some servers wait for before they answer anything else."""
    reply = control.send(command).result()
    port = port_in(reply)
    if port is None:
        return f"does not work: {reply.text}"
    try:
        socket.create_connection((control.sock.getpeername()[0], port), _CONNECT_SECONDS).close()
    except OSError as error:
        return f"names a port that cannot be reached: {error}"
    return "works"
