"""A large file whose consumer is killed again and again goes on where it stopped, and moves hardly more than once."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import stack
from chaos.conftest import LONG
from chaos.judging import end_in_good_order
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Job, Place, local_place
from servers.crossing import FAR, Crossing, block_of_ports
from servers.zoo.stores import Versitygw

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200 if LONG else 300)]

MIB = 1 << 20
SIZE_BYTES, FAULTS = (1024 * MIB, 10) if LONG else (128 * MIB, 4)
SETTINGS = {
    "ETL_RESUME_FROM_BYTES": str(4 * MIB),
    "ETL_INSTANCE_ID": "large",
    "ETL_RETRY_MAX_ATTEMPTS": str(FAULTS + 2),
    "ETL_RETRY_BACKOFF_SECONDS": "0.1",
    "ETL_RETRY_BACKOFF_MAX_SECONDS": "1",
}


@dataclass(frozen=True)
class Large(Job):
    """A job with a file that is larger than what the others share."""

    @property
    def content(self) -> bytes:
        """The source file."""
        chance = random.Random(self.number)
        return b"".join(chance.randbytes(MIB) for _ in range(self.size_bytes // MIB))


@pytest.fixture
def far(
    request: pytest.FixtureRequest,
    make_vsftpd: Callable[..., stack.Vsftpd],
    make_sshd: Callable[..., stack.Sshd],
    tmp_path: Path,
) -> Iterator[tuple[Place, Crossing]]:
    """Give a server of the kind that is asked for, behind a proxy that counts."""
    if request.param == "s3":
        with Versitygw(tmp_path / "versitygw").for_the_session() as store, Crossing([store.port]) as way:
            (root := store.below("base")).mkdir()
            settings = store.settings(TYPE="s3", ENDPOINT=f"http://{FAR}:{store.port}", BASE_PATH="base")
            yield Place("FAR", root, {f"FAR_{key}": value for key, value in settings.items()}), way
        return
    if request.param == "sftp":
        sshd = make_sshd()
        settings = {"HOST_KEY": sshd.fingerprint, "KEY_FILE": str(sshd.key), "BASE_PATH": str(sshd.root)}
        server, ports, root = sshd, [sshd.port], sshd.root
    else:
        data_ports = block_of_ports()
        vsftpd = make_vsftpd(pasv_min_port=str(data_ports[0]), pasv_max_port=str(data_ports[-1]))
        settings = {"PASS": vsftpd.password}
        server, ports, root = vsftpd, [vsftpd.port, *data_ports], vsftpd.root
    settings |= {"TYPE": request.param, "HOST": FAR, "PORT": str(server.port), "USER": server.username}
    with Crossing(ports) as way:
        yield Place("FAR", root, {f"FAR_{key}": value for key, value in settings.items()}), way


@pytest.mark.parametrize(
    ("far", "is_source"),
    [
        ("ftp", False),
        *[
            pytest.param(*pair, marks=pytest.mark.long)
            for pair in [("ftp", True), *itertools.product(("sftp", "s3"), (True, False))]
        ],
    ],
    indirect=["far"],
)
@pytest.mark.parametrize("fault", ["killed", "cut"])
def test_a_large_file_goes_on_where_it_stopped(
    far: tuple[Place, Crossing],
    is_source: bool,
    fault: str,
    topics: Topics,
    consumers: Callable[..., Consumer],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its consumer is killed, or its connections are cut: less than 1.3 times its size passes, and it is right."""
    place, way = far
    here = local_place("HERE", tmp_path_factory.mktemp("here"))
    source, destination = (place, here) if is_source else (here, place)
    job = Large(1, source, destination, size_bytes=SIZE_BYTES)
    job.prepare()
    consumer = consumers("a", place.settings | here.settings | SETTINGS, measured=False, ETL_SLOT="0")
    way.cut_at = [SIZE_BYTES * number // (FAULTS + 1) for number in range(1, FAULTS + 1)]
    way.on_cut = consumer.kill if fault == "killed" else None
    consumer.start()
    topics.send([job])
    for _ in range(FAULTS if fault == "killed" else 0):
        topics.wait_until(lambda: not consumer.running, 120, "a kill")
        consumer.start()
    topics.wait_for([job], 120)
    end_in_good_order(consumer)
    assert way.cuts == FAULTS
    (outcome,) = topics.outcomes
    assert outcome.status == "SUCCESS"
    assert outcome.said["resumed_at"] > SIZE_BYTES // 3
    assert outcome.said["verified_by"] == "size"
    assert ("checksum" in outcome.said) != (is_source and fault == "killed")  # else another process read the beginning
    final = destination.on_disk(job.destination_path)
    assert final.read_bytes() == job.content
    assert list(final.parent.iterdir()) == [final]
    print(f"{place.settings['FAR_TYPE']}: {way.moved_bytes / SIZE_BYTES:.3f} of its size, {fault} {FAULTS} times")
    assert way.moved_bytes < 1.3 * SIZE_BYTES


def stored_bytes(folder: Path) -> int:
    """Return how much there is of the one partial file, under whatever name."""
    with contextlib.suppress(FileNotFoundError):  # there is none yet, or it was renamed just now
        return max((path.stat().st_size for path in folder.iterdir()), default=0)
    return 0


@pytest.mark.parametrize(
    "far", ["ftp", "sftp", pytest.param("s3", marks=[pytest.mark.long, pytest.mark.zoo])], indirect=True
)
def test_a_large_file_that_is_given_up_leaves_nothing(
    far: tuple[Place, Crossing],
    topics: Topics,
    consumers: Callable[..., Consumer],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """What was kept for the next attempt is removed with the last one."""
    place, way = far
    here = local_place("HERE", tmp_path_factory.mktemp("here"))
    job = Large(1, here, place, size_bytes=48 * MIB)
    job.prepare()
    settings = place.settings | here.settings | SETTINGS | {"ETL_RETRY_MAX_ATTEMPTS": "2"}
    way.cut_at = [moved_mib * MIB for moved_mib in range(10, 90, 8)]  # more than two: a session's fault spends none
    folder = place.on_disk(job.destination_path).parent

    def cut() -> None:  # a server that gets no time has stored too little of what it received to be gone on with
        if place.settings["FAR_TYPE"] != "s3":  # whose parts are in no folder
            stack.wait_until(lambda: stored_bytes(folder) >= 4 * MIB, 20, "some of the file being stored")
        way.cut()

    way.on_cut = cut
    consumer = consumers("a", settings, measured=False, ETL_SLOT="0").start()
    topics.send([job])
    topics.wait_for([job], 60)
    assert [outcome.status for outcome in topics.outcomes] == ["FAILED"]
    assert consumer.events("transfer resumed")
    topics.wait_until(lambda: not list(folder.glob("*")), 10, "an empty folder")
    end_in_good_order(consumer)
