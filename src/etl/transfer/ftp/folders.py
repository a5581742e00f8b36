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
    """Make the missing folders above a path; False when none was missing. Others may do the same meanwhile."""
    missing = []
    for folder in folders_above(path):
        if link.ask("CWD", folder).result().is_success:
            break
        missing.append(folder)
    for folder in reversed(missing):
        made = link.ask("MKD", folder).result()
        if not made.is_success and not link.ask("CWD", folder).result().is_success:
            raise _no_folder(link, folder, made)
    return bool(missing)


def _no_folder(link: Link, folder: str, refusal: Reply) -> EtlError:
    if asking.is_surely_file(link, folder):
        return NotAFile(f"{link.name}:{folder} is a file, not a folder", server=link.name)
    return asking.why_not_written(link, folder, refusal)
