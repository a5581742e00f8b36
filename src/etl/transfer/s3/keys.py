"""Whose keys requests are signed with: those of the settings, or those that Amazon's own library finds (`aws`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import AuthenticationFailed, SettingsError
from etl.transfer.s3.options import LACKING, Options
from etl.transfer.s3.signing import Credentials

if TYPE_CHECKING:
    from etl.models.server import TransferSettings


class _NoKeys(Exception):
    """That library has looked everywhere."""


class Keys:
    """The keys of one server, as they are now."""

    def __init__(self, name: str, options: Options, settings: TransferSettings) -> None:
        self._name = name
        self._options = options
        self._settings = settings
        self._token = ""
        self._read_token()

    def current(self) -> Credentials:
        """Return the keys. May ask for new ones shortly before they expire; raises AuthenticationFailed."""
        options = self._options
        if not options.finds_keys:
            return Credentials(options.access_key, options.secret_key, self._token)
        return _found(self._name, self._settings.connect_timeout, self._settings.reply_timeout)

    def renew(self) -> bool:
        """After the store has refused a token as expired: is there another one now?"""
        former = self._token
        self._read_token()
        return self._token != former

    def _read_token(self) -> None:
        self._token = ""
        if self._options.token_file:
            try:
                self._token = Path(self._options.token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeError) as error:
                what = f"{self._name}_SESSION_TOKEN_FILE: the file cannot be read"
                raise SettingsError(what, server=self._name) from error


def _found(name: str, connect_limit: float, reply_limit: float) -> Credentials:
    try:
        keys = _finder(connect_limit, reply_limit).get_frozen_credentials()
    except ImportError as error:
        raise SettingsError(f"{name}_CREDENTIALS: {LACKING}", server=name) from error
    except Exception as error:  # noqa: BLE001 - of that library, or of any that it uses
        # Its text may quote what is secret: a file that cannot be read, an answer.
        why = str(error) if isinstance(error, _NoKeys) else type(error).__name__
        raise AuthenticationFailed(f"{name}: no keys were found (CREDENTIALS=aws): {why}", server=name) from None
    return Credentials(keys.access_key, keys.secret_key, keys.token or "")


@functools.cache
def _finder(connect_limit: float, reply_limit: float) -> Any:
    """Return what finds keys, and renews them: in the environment, in files, at the metadata service, at STS."""
    import botocore.config  # noqa: PLC0415 - an extra, and large
    import botocore.session  # noqa: PLC0415

    session = botocore.session.Session()
    limits = botocore.config.Config(
        connect_timeout=connect_limit, read_timeout=reply_limit, retries={"total_max_attempts": 1}
    )
    session.set_default_client_config(limits)
    for profile in session.full_config["profiles"].values():  # also of those that a role is assumed from
        profile.pop("credential_process", None)  # a program of its own choice, without a limit of time
    found = session.get_credentials()
    if found is None:
        raise _NoKeys("neither in the environment, nor in files, nor at the metadata service of this machine")
    return found
