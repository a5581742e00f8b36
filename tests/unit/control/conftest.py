"""A task of one origin."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pretend
from etl.models.task import Origin, Task


@pytest.fixture
def a_task() -> Task:
    return replace(pretend.task(1), origin=Origin("jobs", 3, 17))
