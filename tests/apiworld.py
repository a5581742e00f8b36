"""The application without a server and without a broker: its views are filled from records that a test makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from apiwork import JOB, TOKENS
from etl.api.app import build
from etl.api.services import Services
from etl.api.views.rows import Rows
from etl.config import ConfigLoader
from etl.models import DLQMessage, TransferResult, header
from etl.models.task import Record

NOW = 1_772_434_800.0  # 2026-03-02T07:00:00Z


class World:
    """The application and what is behind it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        tokens = folder / "tokens"
        tokens.write_text("".join(f"{role}-1:{role}:{token}\n" for role, token in TOKENS.items()))
        environ = {
            "ETL_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "ETL_API_DATA_DIR": str(folder / "data"),
            "ETL_API_TOKENS_FILE": str(tokens),
            "ETL_API_REQUESTS_PER_MINUTE": "1000000",
            "SRC_TYPE": "local",
            "SRC_BASE_PATH": str(folder),
            **settings,
        }
        config = ConfigLoader(environ={name: value for name, value in environ.items() if value})
        self.services = Services.build(config)
        self.acts: list[dict[str, Any]] = []
        self.app: FastAPI = build(self.services, self.acts.append)
        self.topic = config.settings.topic
        self._rows = Rows(self.services.topics, self.services.system)
        self._offset = 0

    def client(self, role: str | None = "admin", **more: Any) -> TestClient:
        headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
        return TestClient(self.app, "http://localhost", headers=headers, raise_server_exceptions=False, **more)

    def take(self, *records: Record) -> None:
        """Take records into the cache, as the thread that follows the topics does."""
        with self.services.store.writing() as connection:
            self._rows.write(connection, records)

    def job(self, number: int, **more: Any) -> Record:
        value = json.dumps({**JOB, "job_id": f"j{number}", **more}).encode()
        return Record(self.topic, 0, number, b"k", value, (), NOW + number)

    def letter(self, number: int, **more: Any) -> Record:
        job = self.job(number, **more)
        letter = DLQMessage.from_record(job, FileNotFoundError(f"no such file {number}"), f"j{number}")
        return Record(f"{self.topic}-dlq", 0, number, b"k", letter.to_json().encode(), (), NOW + number)

    def result(self, number: int, **more: Any) -> Record:
        told = TransferResult(job_id=f"j{number}", **{"status": "SUCCESS", "bytes": 1000, **more})
        headers = ((header.ORIGIN, f"{self.topic}-0-{number}".encode()),)
        return Record(f"{self.topic}-results", 0, number, b"k", told.to_json().encode(), headers, NOW + number)

    def close(self) -> None:
        self.services.checks.close()
        self.services.store.close()
        self.services.vault.close()
