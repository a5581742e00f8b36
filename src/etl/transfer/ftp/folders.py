"""Making the folders that are missing above a path, and why that may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import EtlError, NotAFile
from etl.transfer.ftp import asking
from etl.transfer.ftp.names import folders_above

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.replies import Reply


def make_folders(link: Link, path: str) -> bool:
    """Make the missing folders above a path; False when none was missing. Others may do the same meanwhile.

    Where CWD does not tell which are missing all are made: those that are there refuse it.
    """
    missing, made_one = [], False
    for folder in folders_above(path):
        if asking.ask_entry(link, folder)():
            break
        missing.append(folder)
    for folder in reversed(missing):
        made = link.ask("MKD", folder).result()
        if not made.is_success and link.quirks.bare_names is None:
            link.tries_bare = True
            made = link.ask("MKD", folder).result()
            link.takes_bare(made.is_success or None)
        made_one = made_one or made.is_success
        if not made.is_success and link.quirks.cwd_tells is not False and not asking.ask_entry(link, folder)():
            raise _no_folder(link, folder, made)
    return made_one or bool(missing and link.quirks.cwd_tells is not False)


def _no_folder(link: Link, folder: str, refusal: Reply) -> EtlError:
    if asking.is_surely_file(link, folder):
        return NotAFile(f"{link.name}:{folder} is a file, not a folder", server=link.name)
    return asking.why_not_written(link, folder, refusal)
