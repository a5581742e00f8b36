"""The shell completes the command, as the README says."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from etl.cli import main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_a_shell_completes_commands_and_options(shell: type[ShellComplete]) -> None:
    """Claim: commands, their subcommands and their options are completed."""
    complete = shell(main, {}, "etl", "_ETL_COMPLETE")

    def words(typed: list[str], begun: str) -> set[str]:
        return {item.value for item in complete.get_completions(typed, begun)}

    assert {"status", "submit"} <= words([], "s")
    assert {"replay", "list", "discard"} <= words(["dlq"], "")
    assert "--server" in words(["dlq", "list"], "--se")
