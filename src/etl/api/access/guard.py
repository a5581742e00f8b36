"""Decides who asks: by token, JSON web token, client certificate or session; and keeps the first token.

Closed by default: where nothing is configured, one admin token is made at the first start.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etl.api.access import keys
from etl.api.access.identity import Identity, Role
from etl.api.access.keys import File, JsonWebTokens
from etl.api.access.limits import FAILURES_PER_MINUTE, Bucket
from etl.api.access.vault import FIRST, Vault
from etl.errors import SettingsError

if TYPE_CHECKING:
    from etl.config import Settings

LOCAL_NAMES = ("localhost", "ip6-localhost")


@dataclass
class Guard:
    """Knows every credential. Any thread may use it."""

    vault: Vault
    tokens: File[list[tuple[str, Identity]]] | None = None
    web_tokens: JsonWebTokens | None = None
    certificates: File[dict[str, Role]] | None = None
    hosts: frozenset[str] = frozenset(LOCAL_NAMES)
    requests: Bucket = field(default_factory=lambda: Bucket(1200))
    failures: Bucket = field(default_factory=lambda: Bucket(FAILURES_PER_MINUTE))

    @classmethod
    def of(cls, settings: Settings, vault: Vault) -> Guard:
        """Read every credential that the settings name. Raises SettingsError."""
        _require_together(settings)
        names = [name.strip().lower() for name in settings.api_allowed_hosts.split(",") if name.strip()]
        guard = cls(
            vault,
            hosts=frozenset([*LOCAL_NAMES, socket.gethostname().lower(), settings.api_host.lower(), *names]),
            requests=Bucket(settings.api_requests_per_minute),
        )
        if path := settings.api_tokens_file:
            guard.tokens = File("ETL_API_TOKENS_FILE", path, keys.read_tokens)
        if path := settings.api_jwt_keys_file:
            read = File("ETL_API_JWT_KEYS_FILE", path, keys.read_keys)
            guard.web_tokens = JsonWebTokens(read, settings.api_jwt_issuer, settings.api_jwt_audience)
        if path := settings.api_certs_file:
            guard.certificates = File("ETL_API_CERTS_FILE", path, keys.read_certificates)
        return guard

    def make_first_token(self) -> str | None:
        """Make the first token, unless credentials are configured or it was made before; return it."""
        if self.tokens or self.web_tokens or self.certificates:
            return None
        made = self.vault.make_token(FIRST, Role.ADMIN, "first start")
        return made[1] if made else None

    def by_token(self, token: str) -> Identity | None:
        """Return whose token this is, of either kind."""
        if self.web_tokens is not None and token.count(".") == 2:
            return self.web_tokens.identify(token)
        if self.tokens is not None and (found := keys.find_token(self.tokens.get(), token)):
            return found
        return self.vault.identify(token)

    def by_certificate(self, certificate: dict[str, Any]) -> Identity | None:
        """Return whose certificate this is. It was verified already, against the authorities of the settings."""
        if self.certificates is None:
            return None
        names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
        role = self.certificates.get().get(names[0]) if len(names) == 1 else None
        return None if role is None else Identity(names[0], role, "cert")

    def knows_host(self, host: str) -> bool:
        """May the API be asked under this name? Any address may: only a name can be made to point here."""
        name = host.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _require_together(settings: Settings) -> None:
    """Raise SettingsError for settings that need others."""
    problems = []
    if bool(settings.api_tls_cert_file) != bool(settings.api_tls_key_file):
        missing = "KEY" if settings.api_tls_cert_file else "CERT"
        problems.append(f"ETL_API_TLS_{missing}_FILE is missing: certificate and key belong together")
    if settings.api_jwt_keys_file and not settings.api_jwt_issuer:
        problems.append("ETL_API_JWT_ISSUER is missing: ETL_API_JWT_KEYS_FILE needs it")
    if settings.api_tls_client_ca_file and not settings.api_tls_cert_file:
        problems.append("ETL_API_TLS_CERT_FILE is missing: ETL_API_TLS_CLIENT_CA_FILE needs it")
    if bool(settings.api_certs_file) != bool(settings.api_tls_client_ca_file):
        missing = "TLS_CLIENT_CA" if settings.api_certs_file else "CERTS"
        problems.append(f"ETL_API_{missing}_FILE is missing: the authorities and the roles belong together")
    if problems:
        raise SettingsError("\n  ".join(["settings of the API are wrong:", *problems]))
