"""Names from files and arguments are shown on the terminal, never sent to it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alt.cli import build_app
from alt.commands.outputs import escape_json
from alt.commands.terminal import echo

COMMANDS = Path(__file__).resolve().parents[2] / "alt" / "commands"
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b1m"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", f"/no/{HOSTILE}", "x"],
        ["eval", f"/no/{HOSTILE}", "--data", "x"],
        ["train", f"{HOSTILE}.yaml"],
        ["train", "entity-world-cpu", f"optim.{HOSTILE}=1"],
        ["cost", f"--{HOSTILE}"],
        [HOSTILE],
        ["predict", "m", "c", "--json", f"/dev/null/{HOSTILE}\n/x.json"],
    ],
)
def test_arguments_do_not_steer_the_terminal(arguments: list[str]) -> None:
    """Kind: escape sequences. The text of an error has them as they are written in Python."""
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code != 0
    for sign in "\x1b\x07\x9b":
        assert sign not in result.output
    assert "\\x1b]0;title\\x07" in result.output.replace("\n", "")


def test_lines_stay_lines_and_controls_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\tb\n\x1b[1mc\r")
    assert capsys.readouterr().out == "a\\tb\n\\x1b[1mc\\r\n"
    text = json.dumps({"name": HOSTILE + "\u202e\u2028é"}, ensure_ascii=False)
    assert json.loads(escape_json(text)) == json.loads(text)
    assert not set("\x1b\x07\x9b\u202e\u2028") & set(escape_json(text))


def test_commands_show_everything_through_one_function() -> None:
    """``typer.echo`` and ``print`` would send what a name holds. Tables of rich take their cells escaped."""
    for path in COMMANDS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "terminal.py":
                assert ast.unparse(node.func) not in ("typer.echo", "print", "click.echo"), f"{path.name}:{node.lineno}"
