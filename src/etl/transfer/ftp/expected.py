"""Which replies can be whose: the codes of FTP nearly prove the order of replies. Pure.

A refusal (4xx, 5xx) can be anybody's; most successes can be one command's alone (RFC 959 section 4.2, 2428, 3659).
"""

from __future__ import annotations

from functools import cache

_TRANSFERS = {"RETR", "STOR", "APPE", "NLST", "LIST", "MLSD"}
_LOGIN = {"USER", "PASS"}
# Commands whose reply takes as long as the server reads the file; some give its first line at once.
HASHES = {"HASH", "XSHA256", "XSHA512", "XSHA1", "XSHA", "XMD5", "MD5", "XCRC"}

# A code that is here is no other command's.
_OWNERS: dict[int, set[str]] = {
    211: {"FEAT"},
    213: {"SIZE", "MDTM", "MFMT", *HASHES},
    225: _TRANSFERS,
    226: _TRANSFERS,
    227: {"EPSV", "PASV"},  # some answer one with the other's code
    228: {"EPSV", "PASV"},
    229: {"EPSV", "PASV"},
    230: _LOGIN,
    232: _LOGIN,
    257: {"PWD", "MKD"},
    331: _LOGIN,
    332: _LOGIN,
    350: {"RNFR", "REST"},
}
# A command that is here has no other success.
_SUCCESSES: dict[str, set[int]] = {
    "SIZE": {213},
    "EPSV": {227, 228, 229},
    "PASV": {227, 228, 229},
    "RNFR": {350},
    "REST": {350},
}
_LOGIN_IS_GONE = {530, 532}
_OUT_OF_SEQUENCE = 503
_SECONDS = {"RNTO", *_TRANSFERS, *_LOGIN}  # commands that follow on another, and may rightly come too soon


@cache  # a dozen replies come for each file; commands and codes are few
def can_answer(command: str, code: int) -> bool:
    """Can a final reply of this code be the answer to a command?"""
    if code >= 400:
        return True
    return command in _OWNERS.get(code, {command}) and code in _SUCCESSES.get(command, {code})


def is_of_the_session(command: str, code: int) -> bool:
    """Does a refusal speak of the session (its login is forgotten, it is out of step), and not of a file?"""
    return (code in _LOGIN_IS_GONE and command not in _LOGIN) or (code == _OUT_OF_SEQUENCE and command not in _SECONDS)
