"""The names of FTP Pooler's and rclone's files, and what they are here. Pure tables; docs/ftp-pooler.md shows them.

Each name stands for a setting or, in files of servers, for a property of the server; or it has no meaning here, which
is said once in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _same(text: str) -> str:
    return text


def _milliseconds(text: str) -> str:
    return f"{float(text) / 1000:g}"


def _one_more(text: str) -> str:
    return str(int(text) + 1)


def _level(text: str) -> str:
    return {"CRITICAL": "ERROR", "WARN": "WARNING"}.get(text.upper(), text.upper())


def _format(text: str) -> str:
    return {"console": "text", "plain": "text"}.get(text.lower(), text)


def _negated(text: str) -> str:
    return {True: "false", False: "true"}[switch(text)]


def switch(text: str) -> bool:
    """Return what a switch says. Raises KeyError."""
    return {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}[
        text.strip().lower()
    ]


@dataclass(frozen=True)
class Key:
    """What a name is here. `ours`: a setting, `{NAME}_X` for a property that every server gets, or a bare property.

    Without `ours` the name has no meaning here: `says` tells why; with it, how the value is read. `default`: what FTP
    Pooler takes where its file leaves the name out. `is_refused`: nobody should believe that it has an effect.
    """

    ours: str = ""
    default: str = ""
    read: Callable[[str], str] = _same
    says: str = ""
    is_refused: bool = False


_BREAKER = Key(says="a server that is down is tried again by itself")

# config.yaml, by section and name
CONFIG: dict[str, dict[str, Key]] = {
    "kafka": {
        "bootstrap_servers": Key("ETL_BOOTSTRAP_SERVERS", "localhost:9092", says="a list, or text"),
        "consumer_group": Key("ETL_GROUP_ID", "ftp-pooler"),
        "input_topic": Key("ETL_TOPIC", "ftp-tasks"),
        "result_topic": Key("RESULT_TOPIC", "ftp-results"),
        "fail_topic": Key("FAIL_TOPIC", "ftp-failures"),
        "dlq_topic": Key("DLQ_TOPIC_SUFFIX", says="must begin with the input topic; the rest is the suffix"),
        "max_retries": Key("ETL_RETRY_MAX_ATTEMPTS", "5", _one_more, "and one: the first attempt counts"),
        "base_backoff_ms": Key("ETL_RETRY_BACKOFF_SECONDS", "1000", _milliseconds, "in seconds"),
        "max_backoff_ms": Key("ETL_RETRY_BACKOFF_MAX_SECONDS", "30000", _milliseconds, "in seconds"),
    },
    "pool": {
        "max_sessions_per_pod": Key("ETL_WORKERS", "100", says="transfers at once, each of which has two sessions"),
        "max_sessions_per_connection": Key("{NAME}_MAX_CONNECTIONS", "10"),
        "session_timeout_seconds": Key("ETL_IDLE_TIMEOUT_SECONDS", "300"),
        "prewarm_enabled": Key("{NAME}_PREWARM", says="false: 0"),
        "prewarm_sessions_per_connection": Key("{NAME}_PREWARM", "2"),
        "prewarm_min_connections": Key("{NAME}_PREWARM"),
        "prewarm_timeout_seconds": Key(says="sessions are opened while jobs run"),
    },
    "transfer": {
        "transfer_timeout_seconds": Key("ETL_TRANSFER_TIMEOUT_SECONDS", "300"),
        "connect_timeout_seconds": Key("ETL_CONNECT_TIMEOUT_SECONDS", "30"),
    },
    "retry": {
        "max_retries": Key("ETL_RETRY_MAX_ATTEMPTS", read=_one_more, says="and one: the first attempt counts"),
        "base_backoff_ms": Key("ETL_RETRY_BACKOFF_SECONDS", read=_milliseconds, says="in seconds"),
        "max_backoff_ms": Key("ETL_RETRY_BACKOFF_MAX_SECONDS", read=_milliseconds, says="in seconds"),
    },
    "circuit_breaker": dict.fromkeys(
        ("failure_threshold", "success_threshold", "timeout_seconds", "half_open_max_calls"), _BREAKER
    ),
    "api": {"host": Key("ETL_API_HOST"), "port": Key("ETL_API_PORT", "8080")},
    "metrics": {"port": Key("ETL_METRICS_PORT", "9090", says="plus the number of the process on its host")},
    "logging": {
        "level": Key("ETL_LOG_LEVEL", "INFO", _level),
        "format": Key("ETL_LOG_FORMAT", "json", _format),
    },
}

# connections.ini: names that are not simply a property in lower case
CONNECTIONS: dict[str, Key] = {
    "password": Key("PASS"),
    "timeout": Key(says="ETL_CONNECT_TIMEOUT_SECONDS holds for all servers"),
    "ssl_verify": Key("TLS_VERIFY"),
    "ssl_cert_path": Key("TLS_CERT_FILE"),
    "ssl_key_path": Key("TLS_KEY_FILE"),
    "private_key_path": Key("KEY_FILE"),
    "known_hosts_path": Key("KNOWN_HOSTS_FILE"),
}

_OBSCURED = "what rclone has obscured"
_NO_PROXY = Key(says="proxies are not supported", is_refused=True)
_OWN_WAY = Key(says="found out by itself")


def _listed(option: str) -> Callable[[str], str]:
    return lambda text: f"{option}={','.join(text.split())}"


def _count(text: str) -> str:
    return "" if text.strip() == "0" else text


def _url(text: str) -> str:
    return text if "://" in text else f"https://{text}"


# rclone.conf, by type and name
RCLONE: dict[str, dict[str, Key]] = {
    "ftp": {
        "host": Key("HOST"),
        "port": Key("PORT"),
        "user": Key("USER"),
        "pass": Key("PASS", says=_OBSCURED),
        "tls": Key("TLS", says="true: type ftps, implicit"),
        "explicit_tls": Key("TLS", says="true: type ftps, explicit"),
        "no_check_certificate": Key("TLS_VERIFY", read=_negated, says="the opposite"),
        "disable_tls13": Key("TLS_MAX", read=lambda text: "1.2" if switch(text) else "", says="true: 1.2"),
        "concurrency": Key("MAX_CONNECTIONS", read=_count, says="0: the default"),
        "disable_epsv": Key("EPSV", read=lambda text: "off" if switch(text) else "auto", says="true: off"),
        "socks_proxy": _NO_PROXY,
        "http_proxy": _NO_PROXY,
        "ask_password": Key(says="nobody is there to be asked"),
        "idle_timeout": Key(says="ETL_IDLE_TIMEOUT_SECONDS holds for all servers"),
        "allow_insecure_tls_ciphers": Key(says="set TLS_MIN or TLS_CIPHERS"),
        **dict.fromkeys(
            (
                "disable_mlsd",
                "disable_utf8",
                "writing_mdtm",
                "force_list_hidden",
                "close_timeout",
                "shut_timeout",
                "tls_cache_size",
                "no_check_upload",
                "encoding",
            ),
            _OWN_WAY,
        ),
    },
    "sftp": {
        "host": Key("HOST"),
        "port": Key("PORT"),
        "user": Key("USER"),
        "pass": Key("PASS", says=_OBSCURED),
        "key_file": Key("KEY_FILE"),
        "key_file_pass": Key("KEY_PASSPHRASE", says=_OBSCURED),
        "pubkey_file": Key("CERT_FILE"),
        "known_hosts_file": Key("KNOWN_HOSTS_FILE"),
        "use_insecure_cipher": Key("SSH_LEGACY"),
        "connections": Key("MAX_CONNECTIONS", read=_count, says="0: the default"),
        "ciphers": Key("SSH_OPTIONS", read=_listed("Ciphers")),
        "key_exchange": Key("SSH_OPTIONS", read=_listed("KexAlgorithms")),
        "macs": Key("SSH_OPTIONS", read=_listed("MACs")),
        "host_key_algorithms": Key("SSH_OPTIONS", read=_listed("HostKeyAlgorithms")),
        "key_pem": Key(says="put the key into a file: KEY_FILE", is_refused=True),
        "ssh": Key(says="the ssh program is chosen by the PATH", is_refused=True),
        "socks_proxy": _NO_PROXY,
        "http_proxy": _NO_PROXY,
        "key_use_agent": Key(says="set AGENT to the agent's socket"),
        "ask_password": Key(says="nobody is there to be asked"),
        "idle_timeout": Key(says="ETL_IDLE_TIMEOUT_SECONDS holds for all servers"),
        **dict.fromkeys(
            (
                "chunk_size",
                "concurrency",
                "copy_is_hardlink",
                "disable_concurrent_reads",
                "disable_concurrent_writes",
                "disable_hashcheck",
                "hashes",
                "md5sum_command",
                "path_override",
                "server_command",
                "set_env",
                "set_modtime",
                "sha1sum_command",
                "shell_type",
                "skip_links",
                "subsystem",
                "use_fstat",
            ),
            _OWN_WAY,
        ),
    },
    "s3": {
        "bucket": Key("BUCKET", says="not rclone's: add it, or set {NAME}_BUCKET"),
        "access_key_id": Key("ACCESS_KEY"),
        "secret_access_key": Key("SECRET_KEY"),
        "region": Key("REGION"),
        "endpoint": Key("ENDPOINT", read=_url, says="https, unless it says http"),
        "force_path_style": Key("VIRTUAL_HOST", read=_negated, says="the opposite"),
        "storage_class": Key("STORAGE_CLASS"),
        "server_side_encryption": Key("SSE"),
        "sse_kms_key_id": Key("SSE", says="aws:kms: and the key"),
        "session_token": Key(says="put the token into a file: SESSION_TOKEN_FILE", is_refused=True),
        "env_auth": Key(says="set CREDENTIALS=aws"),
        **dict.fromkeys(
            (
                "acl",
                "bucket_acl",
                "chunk_size",
                "copy_cutoff",
                "location_constraint",
                "max_upload_parts",
                "no_check_bucket",
                "no_head",
                "provider",
                "upload_concurrency",
                "upload_cutoff",
                "use_multipart_etag",
                "v2_auth",
            ),
            _OWN_WAY,
        ),
    },
}
