"""The tables of all global settings and all properties of a server, with default, limits and unit."""

from __future__ import annotations

import dataclasses
import socket
from dataclasses import dataclass, field

from etl.config.kinds import (
    ADDRESSES,
    BANDWIDTH,
    ENCODING,
    LABEL,
    LIMIT,
    MODULES,
    PAIRS,
    PARTIAL_PATTERN,
    PREFIX,
    RIGHTS_OF_JOBS,
    SECRET,
    SIZE,
    SUFFIX,
    SWITCH,
    TEXT,
    TIME_ZONE,
    TOPIC,
    number,
    one_of,
    whole,
)
from etl.config.rows import Setting, setting
from etl.config.serving import ApiSettings
from etl.models.server import TransferSettings

SERVER_PROPERTIES: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting("TYPE", "", TEXT, "the protocol: ftp, ftps, sftp, s3, local, or one of your own"),
        Setting("HOST", "", TEXT, "host name or IP address, without a port"),
        Setting("PORT", "21", whole(1, 65535), "TCP port; unset: the protocol's own"),
        Setting("USER", "", TEXT, "user name of the login"),
        Setting("PASS", "", TEXT, "password of the login; may be empty, but must be set (or PASS_FILE)"),
        Setting("PASS_FILE", "", TEXT, "file that contains the password, instead of PASS (a mounted secret)"),
        Setting("MAX_CONNECTIONS", "8", whole(1, 1000), "sessions with this server at most, per process"),
        Setting(
            "CONNECTS_PER_MINUTE",
            "300",
            whole(1, 100000),
            "new sessions with this server per minute at most, on average, per process",
        ),
        Setting(
            "BANDWIDTH_LIMIT",
            "",
            BANDWIDTH,
            "bytes per second each way, of all processes together: 20M, or by local time: 08:00-18:00 20M, 100M",
        ),
        Setting("PREWARM", "0", whole(0, 1000), "sessions opened ahead of need and kept open, per process"),
        Setting("PASSIVE", "", SWITCH, "true or false: overrides FTP_PASSIVE_MODE for this server"),
        Setting(
            "ENCODING",
            "",
            ENCODING,
            "encoding of file names; unset: UTF-8 if the server offers it",
        ),
        Setting("BASE_PATH", "", TEXT, "folder on the server to which the paths of jobs are relative"),
        Setting(
            "PARTIAL_PATTERN",
            ".etl-{id}.part",
            PARTIAL_PATTERN,
            "name of a file while it is being written; must contain {id} and no slash",
        ),
        Setting(
            "PUBLISH",
            "rename",
            one_of("rename", "direct"),
            "rename: files are written under a hidden name; direct: under their own, where nothing may be renamed",
        ),
        Setting(
            "ACCESS",
            "read,write,move,delete",
            RIGHTS_OF_JOBS,
            "what jobs may do: read (source), write (destination), move and delete (sources, after copying)",
        ),
        Setting("EPSV", "auto", one_of("auto", "off"), "auto: PASV only where EPSV does not work; off: PASV at once"),
        Setting("TIME_ZONE", "", TIME_ZONE, "zone of the times it tells (Asia/Seoul, +09:00); unset: UTC"),
    )
}


@dataclass(frozen=True)
class Settings(ApiSettings):
    """The parsed global settings. The only place for their names, defaults, limits and units."""

    topic: str = setting("ETL_TOPIC", "file-transfer-jobs", TOPIC, "topic of the jobs")
    group_secret: str = setting(
        "ETL_GROUP_SECRET",
        "",
        SECRET,
        "secret of at least 16 characters that all consumers of the group share: proves which deferred jobs are theirs",
        secret=True,
    )
    group_secret_file: str = setting(
        "ETL_GROUP_SECRET_FILE", "", TEXT, "file that contains it, instead of ETL_GROUP_SECRET (a mounted secret)"
    )
    config_file: str = setting(
        "ETL_CONFIG", "", TEXT, "file of settings in YAML, with FTP Pooler's names (docs/ftp-pooler.md)"
    )
    connections_file: str = setting(
        "ETL_CONNECTIONS", "", TEXT, "file of servers, connections.ini or rclone's .conf; several separated by commas"
    )
    group_id: str = setting("ETL_GROUP_ID", "etl-worker-group", TEXT, "consumer group")
    bootstrap_servers: str = setting(
        "ETL_BOOTSTRAP_SERVERS",
        "localhost:9092",
        ADDRESSES,
        "address of the Kafka broker, host:port; several separated by commas",
    )
    kafka_security_protocol: str = setting(
        "ETL_KAFKA_SECURITY_PROTOCOL",
        "PLAINTEXT",
        one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
        "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL: how to connect to Kafka",
    )
    kafka_sasl_mechanism: str = setting(
        "ETL_KAFKA_SASL_MECHANISM",
        "SCRAM-SHA-512",
        one_of("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"),
        "SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN: how to log in to Kafka",
    )
    kafka_username: str = setting("ETL_KAFKA_USERNAME", "", TEXT, "user name of the login to Kafka")
    kafka_password: str = setting("ETL_KAFKA_PASSWORD", "", TEXT, "password of the login to Kafka", secret=True)
    kafka_password_file: str = setting(
        "ETL_KAFKA_PASSWORD_FILE",
        "",
        TEXT,
        "file that contains the password, instead of ETL_KAFKA_PASSWORD (a mounted secret)",
    )
    kafka_ca_file: str = setting(
        "ETL_KAFKA_CA_FILE",
        "",
        TEXT,
        "PEM file of the authorities that signed Kafka's certificates; unset: the system's",
    )
    kafka_check_hostname: bool = setting(
        "ETL_KAFKA_CHECK_HOSTNAME", True, SWITCH, "true: the broker's certificate must name its host"
    )
    consumer_count: int = setting(
        "ETL_CONSUMER_COUNT", 2, whole(1, 100), "consumer processes that the appliance starts"
    )
    num_partitions: int = setting(
        "ETL_NUM_PARTITIONS",
        8,
        whole(1, 10000),
        "partitions of a topic that we create: at most as many processes can share it",
    )
    workers: int = setting("ETL_WORKERS", 8, whole(1, 1000), "lanes (simultaneous transfers) of one consumer process")
    instance_id: str = field(
        default_factory=socket.gethostname,
        metadata={
            "row": Setting(
                "ETL_INSTANCE_ID",
                "",
                LABEL,
                "identity of this installation, which must survive a restart; unset: the host name",
            )
        },
    )
    instance_id_is_set: bool = False
    leave_on_stop: bool = setting(
        "ETL_LEAVE_ON_STOP",
        False,
        SWITCH,
        "true: a process with an ETL_INSTANCE_ID leaves the group when it stops, for scaling in rather than restarting",
    )
    slot: int | None = setting(
        "ETL_SLOT",
        None,
        whole(0, 99),
        "number of this process on its host, set by supervisord; unset: the first free one",
    )
    outage_patience_hours: float = setting(
        "ETL_OUTAGE_PATIENCE_HOURS",
        72.0,
        number(0, 87600),
        "hours that jobs wait for a server that is down",
    )
    on_lost_offsets: str = setting(
        "ETL_ON_LOST_OFFSETS",
        "stop",
        one_of("stop", "oldest", "newest"),
        "where Kafka has forgotten what the group has done: stop, do what no result shows (oldest), or only new jobs "
        "(newest)",
    )
    retry_max_attempts: int = setting("ETL_RETRY_MAX_ATTEMPTS", 5, whole(1, 1000), "attempts of a job in all")
    retry_backoff_seconds: float = setting(
        "ETL_RETRY_BACKOFF_SECONDS", 1.0, number(0, 86400), "seconds: first back-off, which doubles each time"
    )
    retry_backoff_max_seconds: float = setting(
        "ETL_RETRY_BACKOFF_MAX_SECONDS", 300.0, number(0, 86400), "seconds: longest back-off"
    )
    connect_timeout_seconds: float = setting("ETL_CONNECT_TIMEOUT_SECONDS", 10.0, LIMIT, "seconds to connect")
    login_timeout_seconds: float = setting("ETL_LOGIN_TIMEOUT_SECONDS", 30.0, LIMIT, "seconds for welcome and login")
    reply_timeout_seconds: float = setting("ETL_REPLY_TIMEOUT_SECONDS", 60.0, LIMIT, "seconds to wait for a reply")
    stall_timeout_seconds: float = setting(
        "ETL_STALL_TIMEOUT_SECONDS", 60.0, LIMIT, "seconds that a transfer may wait without a byte moving"
    )
    min_bytes_per_second: float = setting(
        "ETL_MIN_BYTES_PER_SECOND",
        10.0,
        number(0, 1e9),
        "bytes per second that a transfer must move, on average over ETL_STALL_TIMEOUT_SECONDS; 0: no minimum",
    )
    transfer_timeout_seconds: float = setting(
        "ETL_TRANSFER_TIMEOUT_SECONDS", 0.0, number(0, 8640000), "seconds for a whole transfer; 0: no limit"
    )
    shutdown_grace_seconds: float = setting(
        "ETL_SHUTDOWN_GRACE_SECONDS",
        5.0,
        number(0, 86400),
        "seconds that running transfers may take to finish after SIGTERM",
    )
    window_records: int = setting(
        "ETL_WINDOW_RECORDS",
        1000,
        whole(1, 1000000),
        "records: most unfinished jobs that a process holds",
    )
    window_bytes: int = setting("ETL_WINDOW_BYTES", 64 << 20, SIZE, "bytes: most that the messages of those jobs take")
    store_bytes: int = setting(
        "ETL_STORE_BYTES", 16 << 20, whole(0, 1 << 40), "bytes: memory of a process for small files, each held whole"
    )
    buffer_bytes: int = setting(
        "ETL_BUFFER_BYTES",
        1 << 20,
        whole(4096, 1 << 30),
        "bytes: buffer of a lane for files that are larger than the buffer",
    )
    spool_limit_bytes: int = setting(
        "ETL_SPOOL_LIMIT_BYTES",
        10 << 30,
        whole(0, 1 << 50),
        "bytes: largest file that may go through our own disk, if one session must both read and write",
    )
    verify_read_back_limit_bytes: int = setting(
        "ETL_VERIFY_READ_BACK_LIMIT_BYTES",
        1 << 30,
        whole(0, 1 << 50),
        "bytes: largest file that is read back for `verify: checksum`, where the server makes no checksums itself",
    )
    idle_timeout_seconds: float = setting(
        "ETL_IDLE_TIMEOUT_SECONDS", 60.0, LIMIT, "seconds after which an unused session is closed"
    )
    session_lifetime_seconds: float = setting(
        "ETL_SESSION_LIFETIME_SECONDS", 3600.0, number(1, 864000), "seconds that a session is used, give or take 5 %"
    )
    ping_timeout_seconds: float = setting(
        "ETL_PING_TIMEOUT_SECONDS", 5.0, LIMIT, "seconds that an unused session may take to answer a ping"
    )
    login_backoff_seconds: float = setting(
        "ETL_LOGIN_BACKOFF_SECONDS",
        60.0,
        LIMIT,
        "seconds before the next login after a refused one; doubles each time, up to an hour",
    )
    ping_interval_seconds: float = setting(
        "ETL_PING_INTERVAL_SECONDS", 20.0, LIMIT, "seconds between pings of an unused session"
    )
    commit_interval_seconds: float = setting(
        "ETL_COMMIT_INTERVAL_SECONDS", 0.1, number(0.001, 60), "seconds between commits of finished jobs"
    )
    commit_max_records: int = setting(
        "ETL_COMMIT_MAX_RECORDS", 500, whole(1, 100000), "records: most finished jobs in one commit"
    )
    dlq_topic_suffix: str = setting("DLQ_TOPIC_SUFFIX", "-dlq", SUFFIX, "suffix of the dead-letter topic")
    result_topic_suffix: str = setting("RESULT_TOPIC_SUFFIX", "-results", SUFFIX, "suffix of the results topic")
    retry_topic_suffix: str = setting(
        "RETRY_TOPIC_SUFFIX", "-retry", SUFFIX, "suffix of the retry topic, which holds deferred jobs"
    )
    result_topic: str | None = setting(
        "RESULT_TOPIC",
        None,
        TOPIC,
        "topic for the results of jobs that succeeded, instead of the results topic",
    )
    fail_topic: str | None = setting(
        "FAIL_TOPIC",
        None,
        TOPIC,
        "topic for the results of jobs that failed, instead of the results topic",
    )
    allowed_pairs: tuple[tuple[str, str], ...] = setting(
        "ETL_ALLOWED_PAIRS",
        (),
        PAIRS,
        "pairs of servers that jobs may name, SOURCE:DESTINATION, separated by commas, * for any; unset: all",
    )
    max_file_bytes: int = setting(
        "ETL_MAX_FILE_BYTES", 0, whole(0, 1 << 50), "bytes: largest file that is copied; 0: no limit"
    )
    resume_from_bytes: int = setting(
        "ETL_RESUME_FROM_BYTES",
        64 << 20,
        whole(4 << 20, 1 << 50),
        "bytes: smallest file whose transfer, once cut, goes on where it stopped",
    )
    result_retention_hours: float = setting(
        "RESULT_RETENTION_HOURS",
        168.0,
        number(0, 876000),
        "hours that results are kept in topics that we create; 0: for ever",
    )
    dlq_retention_hours: float = setting(
        "DLQ_RETENTION_HOURS",
        0.0,
        number(0, 876000),
        "hours that dead letters are kept in topics that we create; 0: until they are purged",
    )
    system_topic_prefix: str = setting(
        "ETL_SYSTEM_TOPIC_PREFIX",
        "etl-",
        PREFIX,
        "prefix of the topics that all processes share: etl-status, etl-control, etl-audit",
    )
    status: bool = setting("ETL_STATUS", True, SWITCH, "true: the process tells its state in etl-status")
    metrics_port: int = setting(
        "ETL_METRICS_PORT",
        0,
        whole(0, 65000),
        "TCP port of a consumer's own metrics, plus its slot's number; 0: it listens nowhere",
    )
    ftp_passive_mode: bool = setting(
        "FTP_PASSIVE_MODE", True, SWITCH, "true: we open the data connections; false: the FTP server opens them"
    )
    log_format: str = setting("ETL_LOG_FORMAT", "text", one_of("text", "json"), "text (for a terminal) or json")
    log_level: str = setting(
        "ETL_LOG_LEVEL", "INFO", one_of("DEBUG", "INFO", "WARNING", "ERROR"), "DEBUG, INFO, WARNING or ERROR"
    )
    plugins: tuple[str, ...] = setting(
        "ETL_PLUGINS",
        (),
        MODULES,
        "Python modules with protocols of your own, separated by commas",
    )

    @property
    def transfer(self) -> TransferSettings:
        """The limits of a session."""
        return TransferSettings(
            connect_timeout=self.connect_timeout_seconds,
            login_timeout=self.login_timeout_seconds,
            reply_timeout=self.reply_timeout_seconds,
            stall_timeout=self.stall_timeout_seconds,
            min_bytes_per_second=self.min_bytes_per_second,
            passive=self.ftp_passive_mode,
            spool_limit_bytes=self.spool_limit_bytes,
            read_back_limit_bytes=self.verify_read_back_limit_bytes,
            max_file_bytes=self.max_file_bytes,
            resume_from_bytes=self.resume_from_bytes,
        )


SETTINGS: dict[str, Setting] = {
    row.metadata["row"].name: dataclasses.replace(row.metadata["row"], field=row.name)
    for row in dataclasses.fields(Settings)
    if "row" in row.metadata
}
