"""Whether this process works: heard the broker, committed what was to be committed, read what was to be read.

Belongs to the consumer's main thread. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

log = structlog.get_logger(__name__)

ASK_SECONDS = 1.0
REMINDER_SECONDS = 60.0  # between two lines about a problem that stays

# Returns why something that should go on does not, or an empty text. The argument is monotonic seconds.
Question = Callable[[float], str]


class Health:
    """Asks the parts of a process whether they get on. `problem` is the first that does not; empty if all do."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._due = 0.0  # of the next reminder; monotonic
        self._asked = 0.0  # when the last look was; monotonic
        self.problem = ""

    def tick(self, now: float) -> None:
        """Ask; log a problem when it appears and each minute, and its end."""
        if now < self._asked + ASK_SECONDS:
            return
        self._asked = now
        before, self.problem = self.problem, next(filter(None, (ask(now) for ask in self._questions)), "")
        if self.problem and (not before or now >= self._due):
            self._due = now + REMINDER_SECONDS
            log.error("not well", problem=self.problem)
        elif before and not self.problem:
            log.info("well again", before=before)
