"""The credentials that files hold: tokens, keys of JSON web tokens, and the roles of clients' certificates.

Each file is read at the start, where a mistake stops the process, and again when it changes, where a mistake is logged
and the last good content stays in force.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import jwt
import structlog

from etl.api.access.identity import ROLES, Identity, Role
from etl.api.access.vault import digest
from etl.errors import SettingsError

T = TypeVar("T")
log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0  # between two looks at whether a file has changed
LEEWAY_SECONDS = 30.0  # that another machine's clock may be off
LIFETIME_SECONDS = 24 * 3600.0  # longest time that a JSON web token may still be good for
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
SHORTEST_TOKEN = 20  # characters
# Headers with which a JSON web token would choose its own key, or ask for rules that are not known here.
REFUSED_HEADERS = ("crit", "jku", "jwk", "x5u", "x5c")


class File(Generic[T]):
    """The parsed content of a file that is read again when it changes. `read` raises ValueError without the content."""

    def __init__(self, setting: str, path: str, read: Callable[[str], T]) -> None:
        self._setting = setting
        self._path = Path(path)
        self._read = read
        self._lock = threading.Lock()  # guards what follows
        self._stamp = self._now()
        self._looked = time.monotonic()
        try:
            self._content = read(self._path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise SettingsError(f"{setting}: the file cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise SettingsError(f"{setting}: {_why(error)}") from None

    def get(self) -> T:
        """Return the content as of now."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_SECONDS:
                self._looked = time.monotonic()
                stamp = self._now()
                if stamp != self._stamp:
                    self._stamp = stamp
                    try:
                        self._content = self._read(self._path.read_text(encoding="utf-8-sig"))
                        log.info("credentials read again", setting=self._setting)
                    except (OSError, ValueError) as error:
                        log.error(  # noqa: TRY400 - a traceback would add nothing
                            "changed file is wrong, the last one stays in force",
                            setting=self._setting,
                            error=_why(error),
                        )
            return self._content

    def _now(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _why(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the file is not UTF-8"
    if isinstance(error, json.JSONDecodeError):  # its text would quote the file
        return f"the file is not JSON (line {error.lineno})"
    return (error.strerror or "") if isinstance(error, OSError) else str(error)


def _lines(text: str) -> list[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _role(word: str, number: int) -> Role:
    if word.lower() not in ROLES:
        raise ValueError(f"line {number}: the role is not one of {', '.join(ROLES)}")
    return ROLES[word.lower()]


def read_tokens(text: str) -> list[tuple[str, Identity]]:
    """Return hash and owner of each line NAME:ROLE:TOKEN. Raises ValueError, which names the line alone."""
    found: dict[str, tuple[str, Identity]] = {}
    for number, line in _lines(text):
        name, _, rest = line.partition(":")
        role, _, token = rest.partition(":")
        if not name or not token:
            raise ValueError(f"line {number} is not NAME:ROLE:TOKEN")
        if len(token) < SHORTEST_TOKEN:
            raise ValueError(f"line {number}: the token has fewer than {SHORTEST_TOKEN} characters")
        if name in found:
            raise ValueError(f"line {number}: there is another token of that name")
        found[name] = digest(token), Identity(name, _role(role, number), "token")
    if not found:
        raise ValueError("the file has no token")
    return list(found.values())


def find_token(tokens: list[tuple[str, Identity]], token: str) -> Identity | None:
    """Return whose token this is; takes as long whether it is there or not."""
    wanted, found = digest(token), None
    for kept, who in tokens:
        if hmac.compare_digest(kept, wanted):
            found = who
    return found


def read_certificates(text: str) -> dict[str, Role]:
    """Return the role of each common name, from lines ROLE:COMMON NAME. Raises ValueError."""
    found = {}
    for number, line in _lines(text):
        word, _, name = line.partition(":")
        if not name.strip():
            raise ValueError(f"line {number} is not ROLE:COMMON NAME")
        found[name.strip()] = _role(word, number)
    if not found:
        raise ValueError("the file has no certificate")
    return found


def read_keys(text: str) -> dict[str | None, jwt.PyJWK]:
    """Return the keys of a JWKS by their id, each bound to its one algorithm. Raises ValueError without any key."""
    data = json.loads(text)
    listed = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ValueError('the file is not a JSON object with "keys"')
    found: dict[str | None, jwt.PyJWK] = {}
    for number, given in enumerate(listed, start=1):
        if not isinstance(given, dict) or given.get("alg") not in ALGORITHMS:
            raise ValueError(f"key {number} has no alg that is one of {', '.join(ALGORITHMS)}")
        if given.get("kid") in found:
            raise ValueError(f"key {number}: there is another key with this kid")
        if given.get("kty") == "oct" and len(str(given.get("k", ""))) * 3 // 4 < int(given["alg"][2:]) // 8:
            raise ValueError(f"key {number} is shorter than its algorithm asks for")
        try:
            found[given.get("kid")] = jwt.PyJWK(given, given["alg"])
        except Exception as error:  # noqa: BLE001 - whatever the library meets in a key; its text could quote it
            raise ValueError(f"key {number} cannot be used ({type(error).__name__})") from None
    return found


class JsonWebTokens:
    """Checks JSON web tokens: signature, issuer, audience and end, by keys of a file alone."""

    def __init__(self, keys: File[dict[str | None, jwt.PyJWK]], issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    def identify(self, token: str) -> Identity | None:
        """Return whose token this is; None for any that is not good, whatever is wrong with it."""
        try:
            return self._identify(token)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _identify(self, token: str) -> Identity | None:
        head = jwt.get_unverified_header(token)
        keys = self._keys.get()
        # The id only selects among the configured keys; without one there must be no choice.
        key = keys.get(head["kid"]) if "kid" in head else next(iter(keys.values())) if len(keys) == 1 else None
        if key is None or any(name in head for name in REFUSED_HEADERS):
            return None
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "aud", "iss", "sub"]},
        )
        name, role = claims["sub"], ROLES.get(str(claims.get("role")))
        if role is None or claims["exp"] - time.time() > LIFETIME_SECONDS + LEEWAY_SECONDS:
            return None
        return Identity(str(name)[:200], role, "jwt")
