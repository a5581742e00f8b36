"""Make the users of the broker, and what each may do, those of a file: `kafka-users.py USERS_FILE PORT`.

With `--check` instead of a port it only looks at the file. One user a line, `[ROLE [TOPICS]] NAME:PASSWORD`:

    produce scans,images camera:secret   may write jobs to these topics, and nothing else
    submit scans operator:secret         the same, and read their results (`etl submit --wait`)
    consume scans worker:secret          what a consumer needs: these topics and those whose names begin so, its
                                         state in etl-status, and to read the orders in etl-control
    consume worker:secret                on every topic; without the word `consume` the same
    admin chief:secret                   everything

What the file does not name is removed, whoever made it: users, and rules of access. The broker is asked through its
loopback listener, which needs no login. Exit code 2: a wrong line, of which the password is not repeated.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from kafka.errors import KafkaError, NoError

# What a consumer needs in the topics of the system (ETL_SYSTEM_TOPIC_PREFIX): it tells its state, and reads the orders
# of operators, which it cannot give. It makes all of them if they are missing.
SYSTEM_TOPICS = {"etl-status": ("READ", "WRITE"), "etl-control": ("READ",), "etl-audit": (), "etl-marks": ()}
ROLES = ("produce", "submit", "consume", "admin")
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
NO_LOGIN = "ANONYMOUS"  # Kafka's name for who did not log in: at LOCAL the super user
START_SECONDS = 120
RESULT_SUFFIX, RETRY_SUFFIX = "-results", "-retry"
ANY_NAME = "*"
CLUSTER_NAME = "kafka-cluster"

Rule = tuple[ResourceType, str, ACLResourcePatternType, ACLOperation]
EXACT, BEGINS = ACLResourcePatternType.LITERAL, ACLResourcePatternType.PREFIXED
Op = ACLOperation


class UsersFileError(Exception):
    """Raised when a line of the file is wrong."""


@dataclass(frozen=True)
class User:
    """One line of the file; no topics means every topic."""

    name: str
    password: str
    role: str
    topics: tuple[str, ...]

    def rules(self) -> set[Rule]:
        """Return what this user may do."""
        if self.role == "admin":
            kinds = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
            everything: set[Rule] = {(kind, ANY_NAME, EXACT, Op.ALL) for kind in kinds}
            return everything | {(ResourceType.CLUSTER, CLUSTER_NAME, EXACT, Op.ALL)}
        if self.role == "consume":
            return self._rules_of_a_consumer()
        found: set[Rule] = set()
        for topic in self.topics:
            found |= {(ResourceType.TOPIC, topic, EXACT, operation) for operation in (Op.WRITE, Op.DESCRIBE)}
            if self.role == "submit":
                results = topic + RESULT_SUFFIX
                found |= {(ResourceType.TOPIC, results, EXACT, operation) for operation in (Op.READ, Op.DESCRIBE)}
        return found

    def _rules_of_a_consumer(self) -> set[Rule]:
        topics = [(topic, BEGINS) for topic in self.topics] or [(ANY_NAME, EXACT)]
        on_topics = (Op.READ, Op.WRITE, Op.CREATE, Op.DESCRIBE, Op.DESCRIBE_CONFIGS)
        found: set[Rule] = {
            (ResourceType.TOPIC, name, kind, operation) for name, kind in topics for operation in on_topics
        }
        # To delete what all groups have read. Not on every topic: it is the right to delete topics, too.
        found |= {(ResourceType.TOPIC, topic + RETRY_SUFFIX, BEGINS, Op.DELETE) for topic in self.topics}
        for name, more in SYSTEM_TOPICS.items():
            operations = (Op.CREATE, Op.DESCRIBE, Op.DESCRIBE_CONFIGS, *(Op[word] for word in more))
            found |= {(ResourceType.TOPIC, name, EXACT, operation) for operation in operations}
        found |= {(ResourceType.TOPIC, "__consumer_offsets", EXACT, Op.DESCRIBE)}
        found |= {(ResourceType.GROUP, ANY_NAME, EXACT, operation) for operation in (Op.READ, Op.DESCRIBE)}
        found |= {(ResourceType.TRANSACTIONAL_ID, ANY_NAME, EXACT, operation) for operation in (Op.WRITE, Op.DESCRIBE)}
        on_the_cluster = (Op.DESCRIBE, Op.DESCRIBE_CONFIGS)
        return found | {(ResourceType.CLUSTER, CLUSTER_NAME, EXACT, operation) for operation in on_the_cluster}


def read(path: Path) -> list[User]:
    """Return the users of the file; raise UsersFileError for the first line that is wrong."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsersFileError(
            f"{path}: cannot be read as UTF-8: {getattr(error, 'strerror', None) or 'no UTF-8'}"
        ) from None
    users: dict[str, User] = {}
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\r")
        if not text.strip() or text.startswith("#"):
            continue
        try:
            user = _user(text)
            if user.name in users:
                raise UsersFileError(f"{user.name} is there twice")
        except UsersFileError as problem:
            raise UsersFileError(f"{path}, line {number}: {problem}") from None
        users[user.name] = user
    return list(users.values())


def _user(line: str) -> User:
    before, colon, password = line.partition(":")
    words = before.split()
    if not colon or not words or not password:
        raise UsersFileError("is not [ROLE [TOPICS]] NAME:PASSWORD")
    *said, name = words
    if name == NO_LOGIN:
        raise UsersFileError(f"{NO_LOGIN} is Kafka's name for who does not log in")
    role = said[0] if said else "consume"
    if role not in ROLES:
        raise UsersFileError(f"the role is none of {', '.join(ROLES)}")
    topics = tuple(topic for word in said[1:] for topic in word.split(",") if topic)
    if not all(TOPIC.fullmatch(topic) for topic in topics):
        raise UsersFileError("a topic has characters other than A-Z a-z 0-9 . _ -")
    if role in {"produce", "submit"} and not topics:
        raise UsersFileError(f"{role} needs the topics that {name} may write to: {role} TOPIC,TOPIC {name}:...")
    if role == "admin" and topics:
        raise UsersFileError("admin is for everything, and takes no topics")
    return User(name, password, role, topics)


def apply(users: list[User], admin: KafkaAdminClient) -> None:
    """Make users and rules those of the file. Raises KafkaError, also when the broker refuses one of them."""
    named = {user.name for user in users}
    # Kafka takes one change of a user at a time.
    changes: dict[ScramMechanism | None, list[object]] = {}
    for name, found in admin.describe_user_scram_credentials().items():
        for mechanism in (info["mechanism"] for info in found["credential_infos"]):
            if name not in named or mechanism != ScramMechanism.SCRAM_SHA_512:
                changes.setdefault(mechanism, []).append(UserScramCredentialDeletion(name, mechanism))
    changes[None] = [UserScramCredentialUpsertion(user.name, "SCRAM-SHA-512", user.password) for user in users]
    wanted = {_acl(user.name, rule) for user in users for rule in user.rules()}
    every = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    present = set(admin.describe_acls(ACLFilter(None, None, Op.ANY, ACLPermissionType.ANY, every))[0])
    # Rights are taken away before users come, and given after: nobody has a moment of another's.
    if gone := present - wanted:
        filters = [
            ACLFilter(acl.principal, acl.host, acl.operation, acl.permission_type, acl.resource_pattern) for acl in gone
        ]
        _refused([error.__name__ for _, _, error in admin.delete_acls(filters) if error is not NoError])
    for some in filter(None, changes.values()):
        _refused([f"{name}: {why}" for name, why in admin.alter_user_scram_credentials(some).items() if why])
    if new := wanted - present:
        _refused([kind.__name__ for kind in admin.create_acls(list(new))["failed"]])


def _acl(name: str, rule: Rule) -> ACL:
    kind, resource, pattern, operation = rule
    return ACL(f"User:{name}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, resource, pattern))


def _refused(problems: list[str]) -> None:
    if problems:
        raise KafkaError("; ".join(problems))


def apply_once_it_serves(users: list[User], port: int) -> None:
    """Apply them at the broker of this port, for whose start it waits. Raises OSError, KafkaError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=20_000)
            try:
                return apply(users, admin)
            finally:
                admin.close()
        except (OSError, KafkaError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main() -> int:
    """Return the exit code."""
    try:
        users = read(Path(sys.argv[1]))
        if sys.argv[2] != "--check":
            apply_once_it_serves(users, int(sys.argv[2]))
            print(
                f"kafka-users: users of the listeners with login: {' '.join(user.name for user in users)}", flush=True
            )
    except UsersFileError as error:
        print(f"kafka-users: {error}", file=sys.stderr)
        return 2
    except (OSError, KafkaError) as error:
        print(f"kafka-users: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
