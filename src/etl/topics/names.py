"""The names of the topics that belong to a source topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from etl.config import Settings


@dataclass(frozen=True)
class Topics:
    """The names of a source topic and its companions. `failed`, for failed results, equals `results` unless set."""

    source: str
    results: str
    failed: str
    retry: str
    dlq: str

    @classmethod
    def of(cls, topic: str, settings: Settings) -> Self:
        """Derive the names from the settings."""
        results = settings.result_topic or topic + settings.result_topic_suffix
        return cls(
            source=topic,
            results=results,
            failed=settings.fail_topic or results,
            retry=topic + settings.retry_topic_suffix,
            dlq=topic + settings.dlq_topic_suffix,
        )
