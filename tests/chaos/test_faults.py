"""Servers that go wrong at random, in every way there is, under the real consumer: promises hold all the same."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.conftest import LONG
from chaos.judging import end_in_good_order
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import Job, Work, ftp_place, local_place
from servers.certificates import Authority
from servers.fake_tls import FaultyTLS
from servers.faulty import FAULTS, GROWTH, FaultyFTP, Plan
from stack import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 240)]

SEEDS = tuple(range(20261125, 20261128)) if LONG else (20261125,)
JOBS = 3000 if LONG else 500
CHANCE = 0.03  # of each command that can go wrong; a job sends ten such or more
STANDSTILL = 75  # seconds: a server that was down again and again may be left alone for a minute
SETTINGS = {
    "ETL_CONNECT_TIMEOUT_SECONDS": "1",
    "ETL_LOGIN_TIMEOUT_SECONDS": "0.8",
    "ETL_REPLY_TIMEOUT_SECONDS": "0.4",
    "ETL_STALL_TIMEOUT_SECONDS": "0.4",
    "ETL_MIN_BYTES_PER_SECOND": "500",
    "ETL_RETRY_MAX_ATTEMPTS": "8",
    "ETL_RETRY_BACKOFF_SECONDS": "0.05",
    "ETL_RETRY_BACKOFF_MAX_SECONDS": "0.5",
    "ETL_IDLE_TIMEOUT_SECONDS": "1",
    "ETL_LOGIN_BACKOFF_SECONDS": "0.2",
    "ETL_WINDOW_RECORDS": "5000",
    "ETL_WORKERS": "8",
    "PYTHONFAULTHANDLER": "1",
}

# The codes of failures that nobody waits for, and the faults that may be called so; others are tried again.
PERMANENT = {
    "PERMISSION_DENIED": {"RETR denied", "RNFR denied", "RNTO denied"},
    "FILE_NOT_FOUND": set(),
    "ALREADY_EXISTS": set(),
    "UNKNOWN_ERROR": set(),
    "INVALID_MESSAGE": set(),
    "INVALID_CONFIG": set(),
}


@pytest.fixture
def flaky(tmp_path: Path, authority: Authority) -> Iterator[tuple[Work, list[FaultyFTP]]]:
    """Work between two servers that go wrong, one of them under TLS, and a local folder."""
    one = FaultyFTP(tmp_path / "one", Plan(FAULTS, chance=CHANCE))
    two = FaultyTLS(authority.known("127.0.0.1"), tmp_path / "two", Plan(FAULTS, chance=CHANCE))
    trusted = {"TYPE": "ftps", "TLS_FINGERPRINT": two.tls.certificate.fingerprint}
    places = [
        ftp_place("ONE", one, CONNECTS_PER_MINUTE="10000"),
        ftp_place("TWO", two, CONNECTS_PER_MINUTE="10000", **trusted),
    ]
    servers: list[FaultyFTP] = [one, two]
    yield Work([*places, local_place("HERE", tmp_path / "here")]), servers
    for server in servers:
        server.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_all_faults_at_random(
    flaky: tuple[Work, list[FaultyFTP]], topics: Topics, consumers: Callable[..., Consumer], seed: int
) -> None:
    """Every file is right in the end, or one dead letter says truly why not; none is seen half, nothing is left."""
    work, servers = flaky
    for number, server in enumerate(servers):
        server.plan = Plan(FAULTS, chance=CHANCE, seed=seed + number)
    jobs = work.add(JOBS, "replace", "keep")
    random.Random(seed).shuffle(jobs)
    consumer = consumers("a", work.settings, ETL_SLOT="0", ETL_INSTANCE_ID="flaky", **SETTINGS).start()
    with Watcher(jobs) as watcher:
        finals = {str(job.destination.on_disk(job.destination_path)): job.size_bytes for job in jobs}
        watcher.allow({path: size + len(GROWTH) for path, size in finals.items()})
        topics.send(jobs)
        wait_while_they_move(jobs, topics, consumer)
        time.sleep(1.0)  # a second result would come now
        topics.poll(0.3)
        tidy(work, servers, topics)
        end_in_good_order(consumer)
    happened = [what for server in servers for _, what in server.happened]
    # Where a server refuses to rename over a file, the name is absent while the two are swapped: the one exception.
    refusers = tuple(f"absent for a moment: {s.root}" for s in servers if "RNTO denied" in {f for _, f in s.happened})
    problems = judged(work, topics, servers)
    problems += [seen for seen in sorted(watcher.wrong) if not seen.startswith(refusers or ("-",))]
    assert not problems, f"seed {seed}: {len(problems)} problems:\n" + "\n".join(problems[:30])
    assert len(happened) > JOBS / 5
    assert len(set(happened)) > 40
    assert not any(server.strangers for server in servers)
    assert topics.lag() == 0


def wait_while_they_move(jobs: list[Job], topics: Topics, consumer: Consumer) -> None:
    """Wait until all have results; when none comes for a while, have the process say in its log where it stands."""
    wanted, known, moved = {job.id for job in jobs}, 0, time.monotonic()
    while len(topics.done & wanted) < len(wanted):
        if topics.poll() > known:
            known, moved = len(topics.outcomes), time.monotonic()
        if time.monotonic() - moved > STANDSTILL:
            consumer.signal(signal.SIGABRT)
            consumer.wait(20)
            stacks = consumer.log.read_text(errors="replace").partition("Fatal Python error")[2]
            raise AssertionError(f"{len(wanted) - known} jobs and no result for {STANDSTILL} s:\n{stacks[:20000]}")


def tidy(work: Work, servers: list[FaultyFTP], topics: Topics) -> None:
    """Let the servers work well: what could not be deleted before is, as soon as somebody comes to a server again."""
    for server in servers:
        server.plan.is_over = True
    deadline = time.monotonic() + 30
    while work.partials():
        assert time.monotonic() < deadline, f"left over: {work.partials()}"
        time.sleep(1.2)  # sessions that idled are closed: the next job opens new ones, which tidy up
        more = work.add(6, "replace", "keep")
        topics.send(more)
        topics.wait_for(more, 20)


def judged(work: Work, topics: Topics, servers: list[FaultyFTP]) -> list[str]:
    """Say what is not as it must be."""
    by_name = dict(zip(("ONE", "TWO"), servers, strict=True))
    letters = {letter["job_id"]: letter for letter in map(json.loads, topics.values(f"{topics.name}-dlq"))}
    results: dict[str, list[dict[str, object]]] = {}
    for outcome in topics.outcomes:
        results.setdefault(outcome.job_id, []).append(dict(outcome.said))
    said, wanted = [], set()
    for job in work.jobs:
        mine = results.get(job.id, [])
        final = job.destination.on_disk(job.destination_path)
        source = job.source.on_disk(job.source_path)
        wanted |= {source}
        if len(mine) != 1:
            said.append(f"{len(mine)} results: {job.id}")
        elif mine[0]["status"] == "SUCCESS":
            wanted.add(final)
            if not final.is_file() or final.read_bytes() != source.read_bytes():
                said.append(f"wrong content: {job.id}")
            elif mine[0]["bytes"] != final.stat().st_size:
                said.append(f"untrue: {mine[0]}")
            if job.id in letters:
                said.append(f"a dead letter for a job that succeeded: {job.id}")
        else:
            said += untrue(job, mine[0], letters.pop(job.id, None), by_name)
            # Untouched; or renamed by a server that never said so.
            was_renamed = "RNTO done_and_gone" in faults_of(job, by_name)
            if final.exists() and (was_renamed or final.read_bytes() == job.before):
                wanted.add(final)
    found = {path for place in work.places for path in place.root.rglob("*") if path.is_file()}
    return said + [f"left over: {path}" for path in sorted(found - wanted)]


def faults_of(job: Job, servers: dict[str, FaultyFTP]) -> set[str]:
    """Return what went wrong at a job's servers with its files; of a partial file's name nobody knows whose it is."""
    found: set[str] = set()
    for place, path in ((job.source, job.source_path), (job.destination, job.destination_path)):
        if place.name in servers:
            server = servers[place.name]
            partials = [seen for seen, _ in list(server.happened) if "/.etl-" in seen]
            found |= server.faults_of(path, *(partials if place is job.destination else ()))
    return found


def untrue(
    job: Job, result: dict[str, object], letter: dict[str, object] | None, servers: dict[str, FaultyFTP]
) -> list[str]:
    """Say what is wrong with the report of a failure."""
    code = str(result["error_code"])
    if letter is None or letter["error_code"] != code:
        return [f"no dead letter of its own: {result}"]
    if code in PERMANENT and not PERMANENT[code] & faults_of(job, servers):
        return [f"nothing such happened: {code} {result['error']}; but {sorted(faults_of(job, servers))}"]
    attempts = letter["attempts"]
    assert isinstance(attempts, list)
    if code not in PERMANENT and len(attempts) < int(SETTINGS["ETL_RETRY_MAX_ATTEMPTS"]):
        return [f"given up too early: {letter}"]
    return []


def test_faults_leave_no_other_server_behind(
    flaky: tuple[Work, list[FaultyFTP]], topics: Topics, consumers: Callable[..., Consumer], tmp_path: Path
) -> None:
    """With a server that hangs in every upload, jobs between the others are done as if it were not there."""
    work, servers = flaky
    servers[0].plan = Plan({})
    servers[1].plan = Plan({"STOR": ("hang", "stall", "dribbled")})
    one, two, here = work.places
    work.pairs = [(one, two)]
    stuck = work.add(12, "replace", "keep")
    work.pairs = [(one, here), (here, one)]
    well = work.add(200, "replace", "keep")
    settings = SETTINGS | {"ETL_RETRY_MAX_ATTEMPTS": "2"}
    consumer = consumers("a", work.settings, ETL_SLOT="0", ETL_INSTANCE_ID="beside", **settings).start()
    topics.send([*stuck, *well])
    topics.wait_for(well, 60)
    assert len(topics.done & {job.id for job in stuck}) < len(stuck)
    topics.wait_for(stuck, 100)
    servers[1].plan.is_over = True
    outcomes = {outcome.job_id: outcome.said for outcome in topics.outcomes}
    for job in stuck:
        said = outcomes[job.id]
        assert said["error_code"] == "TRANSFER_TIMEOUT", said
        assert "TWO" in said["error"], said
        assert "ETL_" in said["error"], said
    assert {outcomes[job.id]["status"] for job in well} == {"SUCCESS"}
    wait_until(lambda: not work.partials(), 10, "all partial files are gone")
    end_in_good_order(consumer)
