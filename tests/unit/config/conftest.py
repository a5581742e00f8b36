"""Files of settings in these tests are private, as a user's should be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _private_files() -> Iterator[None]:
    """Make new files readable for their owner only."""
    before = os.umask(0o077)
    yield
    os.umask(before)
