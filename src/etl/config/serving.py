"""The settings of the API: where it listens, who may use it. A part of `Settings`."""

from __future__ import annotations

from dataclasses import dataclass

from etl.config.kinds import SWITCH, TEXT, whole
from etl.config.rows import setting


@dataclass(frozen=True)
class ApiSettings:
    """The parsed settings of the API."""

    api: bool = setting(
        "ETL_API", True, SWITCH, "true: an appliance with a broker of its own runs the API with its page"
    )
    api_host: str = setting(
        "ETL_API_HOST", "127.0.0.1", TEXT, "address that the API listens on; 0.0.0.0: all of this machine"
    )
    api_port: int = setting("ETL_API_PORT", 8080, whole(1, 65535), "TCP port of the API")
    api_allowed_hosts: str = setting(
        "ETL_API_ALLOWED_HOSTS",
        "",
        TEXT,
        "names under which the API may be asked, besides localhost, addresses and its host's name; separated by commas",
    )
    api_data_dir: str = setting(
        "ETL_API_DATA_DIR",
        "",
        TEXT,
        "folder of the API's cache, tokens and sessions, private to its user; unset: a temporary one",
    )
    api_tokens_file: str = setting(
        "ETL_API_TOKENS_FILE", "", TEXT, "file of tokens, one NAME:ROLE:TOKEN a line; roles: viewer, operator, admin"
    )
    api_jwt_keys_file: str = setting(
        "ETL_API_JWT_KEYS_FILE",
        "",
        TEXT,
        "JSON file (JWKS) of the keys that sign JSON web tokens, each with its alg",
    )
    api_jwt_issuer: str = setting("ETL_API_JWT_ISSUER", "", TEXT, "issuer (iss) that a JSON web token must have")
    api_jwt_audience: str = setting(
        "ETL_API_JWT_AUDIENCE", "etl-file-sync", TEXT, "audience (aud) that a JSON web token must have"
    )
    api_tls_cert_file: str = setting(
        "ETL_API_TLS_CERT_FILE", "", TEXT, "PEM file of the API's certificate and its chain; set: HTTPS alone is spoken"
    )
    api_tls_key_file: str = setting("ETL_API_TLS_KEY_FILE", "", TEXT, "PEM file of the certificate's private key")
    api_tls_client_ca_file: str = setting(
        "ETL_API_TLS_CLIENT_CA_FILE", "", TEXT, "PEM file of the authorities that sign clients' certificates"
    )
    api_certs_file: str = setting(
        "ETL_API_CERTS_FILE", "", TEXT, "file of clients' certificates, one ROLE:COMMON NAME a line"
    )
    api_requests_per_minute: int = setting(
        "ETL_API_REQUESTS_PER_MINUTE", 1200, whole(10, 1000000), "requests of one address per minute at most"
    )
