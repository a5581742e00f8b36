"""No unit test asserts how long something took: on a busy machine that says nothing of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CLOCKS = {"monotonic", "perf_counter", "time", "process_time", "thread_time"}


def is_duration(node: ast.AST) -> bool:
    """Is this a difference from the moment when it is evaluated, as `time.monotonic() - started`?"""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and isinstance(node.left, ast.Call)
        and isinstance(node.left.func, ast.Attribute)
        and node.left.func.attr in CLOCKS
    )


def timed(source: str) -> list[int]:
    """Return the lines of assertions that measure time."""
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return [one.lineno for one in asserts if any(is_duration(node) for node in ast.walk(one.test))]


def test_a_timed_assertion_is_noticed() -> None:
    assert timed("x = 1\nassert (time.perf_counter() - started) / 1000 < 0.005\nassert time.monotonic() < end") == [2]


def test_no_unit_test_measures_time() -> None:
    found = {path.name: timed(path.read_text()) for path in Path(__file__).parent.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
