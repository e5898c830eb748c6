"""What docs/command_line.md promises of all commands: one meaning per option, one status per kind of error."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import alt
from alt.cli import build_app
from alt.commands import cost as cost_module
from alt.commands.settings import complete_setting
from alt.errors import Terminated, UsageError, UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command_line.md"


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command under the name that a user types."""
    group = get_command(build_app()) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands())


def options(command: Any) -> dict[str, Any]:
    """The options of a command that its help shows, by their long names."""
    return {
        next(o for o in p.opts if o.startswith("--")): p
        for p in command.params
        if p.param_type_name == "option" and not p.hidden and "--help" not in p.opts
    }


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    rows = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert rows
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in rows[0].splitlines()[2:]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


# ---------------------------------------------------------------------------------------------------- the table


def test_the_table_lists_every_option_of_every_command() -> None:
    real: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for option in options(command):
            real.setdefault(option, set()).add(name)
    written = {row[0].strip("`"): {name.strip() for name in row[3].split(",")} for row in table("Options")}
    assert written == real
    assert list(written) == sorted(written)


def test_the_page_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `alt ([a-z]+(?: [a-z]+)?)", PAGE.read_text(), re.M))
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("option", sorted({name for command in COMMANDS.values() for name in options(command)}))
def test_an_option_takes_the_same_value_everywhere(option: str) -> None:
    """Also its description, but for what is said of a command's own files, models and steps."""
    found = [options(command)[option] for command in COMMANDS.values() if option in options(command)]
    assert len({(p.metavar, p.is_flag) for p in found if option != "--pretrained"}) <= 1
    if option not in ("--captions", "--out", "--precision", "--pretrained", "--steps"):
        assert len({p.help for p in found}) == 1
    for parameter in found:
        assert parameter.help[0].isupper() or parameter.help.startswith(("auto", "cpu", "open_clip"))
        assert parameter.help.endswith(".")


def test_devices_are_auto_by_default() -> None:
    assert {options(c)["--device"].default for c in COMMANDS.values() if "--device" in options(c)} == {"auto"}


# ---------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("wrong", [["--no-such-option"], ["--seeds", "x"], ["too", "many", "words", "here"]], ids=str)
def test_wrong_usage_has_status_2(name: str, wrong: list[str]) -> None:
    if name == "table" and "too" in wrong:  # it takes any number of results
        wrong = ["--out"]
    result = run(*name.split(), *wrong)
    assert result.exit_code == 2
    assert_one_sentence(result)


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (1, ["train", "no-such-configuration"]),
        (1, ["train", "/no/such/file.yaml"]),
        (2, ["train", "entity-world-cpu", "--set", "nothing.here=1"]),
        (2, ["train"]),
        (1, ["eval", "/no/model.safetensors", "--data", "/no/list.txt"]),
        (2, ["eval", "/no/model.safetensors", "--data", "/no/list.txt", "--r", "many"]),
        (2, ["eval", "/no/model.safetensors", "--data", "/no/list.txt", "--views", "2x2"]),
        (2, ["eval", "/no/model.safetensors", "--data", "/no/list.txt", "--device", "gpu"]),
        (1, ["predict", "/no/model.safetensors", "/no/clip"]),
        (2, ["predict", "/no/model.safetensors", "/no/clip", "--r", "1.5,2"]),
        (2, ["tradeoff", "--sweep", "1,x"]),
        (2, ["tradeoff", "--sweep", ""]),
        (2, ["tradeoff", "--data", "/no/list.txt"]),
        (2, ["tradeoff", "--labels", "/no/labels.csv"]),
        (2, ["tradeoff", "--batch", "8"]),
        (2, ["tradeoff", "--checkpoint", "/no/model.safetensors", "--data", "/no/list.txt", "--seeds", "3"]),
        (2, ["demo", "--sweep", "4,x"]),
        (2, ["demo", "--sweep", "-1"]),
        (1, ["demo", "--images", "/no/folder"]),
        (2, ["compare", "--methods", "nobody"]),
        (2, ["entityworld", "clips", "{tmp}", "--split", "nowhere"]),
        (2, ["nothing"]),
    ],
)
def test_statuses(status: int, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(word.format(tmp=tmp_path) for word in arguments))
    assert result.exit_code == status, result.output
    assert_one_sentence(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["cost", "--json", "{file}/results.json"],
        ["eval", "/no/model", "--data", "x", "--json", "{file}/results.json"],
        ["eval", "/no/model", "--data", "x", "--out", "{file}"],
        ["predict", "/no/model", "x", "--html", "{file}/page.html"],
        ["predict", "/no/model", "x", "--pictures", "{file}"],
        ["tradeoff", "--out", "{file}"],
        ["demo", "--out", "{file}"],
        ["compare", "--out", "{file}"],
        ["entityworld", "clips", "{file}"],
    ],
    ids=lambda words: " ".join(words[:2] + words[-2:-1]),
)
def test_outputs_are_checked_before_anything_else(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    start = time.perf_counter()
    result = run(*(word.format(file=tmp_path / "file") for word in arguments))
    assert time.perf_counter() - start < 20, "the work came first"
    assert result.exit_code == 1, result.output
    assert "cannot be written (" in result.stderr
    assert_one_sentence(result)


def assert_one_sentence(result: Result) -> None:
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip()[-1] in ".?"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("The file is damaged."), 1, "Error: The file is damaged."),
        (UsageError("--r takes a number."), 2, "Error: --r takes a number."),
        (ValueError("x: expected 1\nand more"), 1, "Error: x: expected 1."),
        (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device."),
        (ModuleNotFoundError("no", name="lightning"), 1, "Error: alt cost needs lightning; install it with:"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (KeyboardInterrupt("Interrupted; more."), 130, "Interrupted; more."),
        (Terminated("Terminated; go on."), 143, "Terminated; go on."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_in_its_status(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cost_module, "check_file", fail)
    result = run("cost")
    assert result.exit_code == status
    assert result.stderr.startswith(words)
    assert result.stderr.count("\n") == 1
    traced = run("-vv", "cost").stderr
    assert traced.rstrip().splitlines()[-1].startswith(words)
    assert ("Traceback" in traced) == (status in (1, 2))


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(cost_module, "check_file", fail)
    assert isinstance(run("cost").exception, AssertionError)


def test_sigterm_has_status_143() -> None:
    code = (
        "import time, sys, alt.commands.cost as c\n"
        "def wait(*_): print('here', flush=True); time.sleep(60)\n"
        "c.check_file = wait\nsys.argv = ['alt', 'cost']\nfrom alt.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err == "Terminated.\n"


def test_signal_and_logger_are_as_before() -> None:
    import logging

    before = signal.getsignal(signal.SIGTERM), logging.getLogger("alt").level, list(logging.getLogger("alt").handlers)
    run("-vv", "cost", "--nothing")
    after = signal.getsignal(signal.SIGTERM), logging.getLogger("alt").level, list(logging.getLogger("alt").handlers)
    assert before == after


# ---------------------------------------------------------------------------------------------- help and version


def test_help_imports_nothing_heavy() -> None:
    lines = [["--help"], *([*name.split(), "--help"] for name in COMMANDS)]
    code = (
        "import sys; from typer.testing import CliRunner; from alt.cli import build_app; app = build_app()\n"
        f"for line in {lines!r}:\n"
        "    result = CliRunner().invoke(app, line); assert result.exit_code == 0, result.output\n"
        "print([m for m in ('torch', 'numpy', 'lightning', 'open_clip', 'PIL', 'triton', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_typer_the_script_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom alt.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "alt: the command line needs typer; install it with: pip install 'alt-kernels[models]'\n"


def test_version_is_what_a_bug_report_needs() -> None:
    import torch

    import alt_kernels

    result = run("--version")
    assert result.exit_code == 0
    said = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert said["alt-kernels"] == f"alt-kernels {alt.__version__}"
    assert torch.__version__ in said["torch"]
    assert {"triton", "numpy", "lightning", "open_clip", "python", "GPU"} <= said.keys()
    for name, backend in alt_kernels.backends().items():
        assert f"backend {name}: {'yes' if backend.available else 'no'}, {backend.reason}" in result.stdout


# ------------------------------------------------------------------------------------------------ old spellings


def test_old_spellings_warn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run("tradeoff", "--r", "0,x")
    assert result.stderr.splitlines()[0].startswith("Warning: --r is deprecated here")
    assert result.exit_code == 2
    result = run("predict", "/no/model", "clip", "--json", "--top", 3)
    assert result.stderr.splitlines()[0].startswith("Error: /no/model: no such checkpoint")
    assert result.stderr.splitlines()[1] == "Warning: --json without a file is deprecated; write --json -"
    result = run("eval", "/no/model", "--data", "x", "--out", tmp_path / "result.json")
    assert result.stderr.splitlines()[0].startswith("Warning: --out ")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("name", [["entityworld"], ["entityworld", "compare"]], ids=" ".join)
def test_the_comparison_has_its_old_names(name: list[str]) -> None:
    result = run(*name, "--methods", "nobody")
    assert "Warning: alt entityworld compare is deprecated; write alt compare" in result.stderr
    assert "Error: --methods knows systems, unlabelled" in result.stderr
    assert result.exit_code == 2


def test_the_device_of_training_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def accelerator(*words: str) -> str:
        found = re.search(r"accelerator: (.*)", run("train", "entity-world-cpu", "--show", *words).stdout)
        assert found
        return found[1]

    assert accelerator() == "cpu"  # the configuration's
    assert accelerator("--device", "auto") == "auto"
    assert accelerator("trainer.accelerator=gpu", "--device", "cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("train", "entity-world-cpu", "--device", "cuda").exit_code == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert accelerator("--device", "cuda") == "gpu"
    result = run("train", "entity-world-cpu", "--device", "cuda:1")
    assert result.exit_code == 2
    assert "CUDA_VISIBLE_DEVICES" in result.stderr
    assert_one_sentence(result)


# ---------------------------------------------------------------------------------------------------- settings


def test_set_help_lists_every_setting_of_the_configuration() -> None:
    from alt.train.config import load_config
    from alt.validation import flatten

    config = load_config("entity-world-cpu")
    listed = {line.split()[0]: line for line in run("train", "entity-world-cpu", "--set", "help").stdout.splitlines()}
    assert {key for key in flatten(config) if key != "model.options"} <= listed.keys()
    assert f" {config.optim.lr} " in listed["optim.lr"]
    assert listed["trainer.precision"].endswith("32-true | bf16-mixed | 16-mixed")
    assert "model.options.strategy" in listed
    assert {line.split()[0] for line in run("train", "--set", "help").stdout.splitlines()} >= {"optim.lr", "seed"}


def test_set_completes_keys_and_values() -> None:
    assert complete_setting("optim.l") == ["optim.lr="]
    assert complete_setting("trainer.strategy=") == [f"trainer.strategy={x}" for x in ("auto", "ddp", "fsdp")]
    assert complete_setting("trainer.progress=f") == ["trainer.progress=false"]
    assert complete_setting("nothing") == []


def test_a_bare_setting_is_as_good_as_set() -> None:
    spelled = run("train", "entity-world-cpu", "--set", "optim.lr=0.5", "--show")
    bare = run("train", "entity-world-cpu", "optim.lr=0.5", "--show")
    assert bare.exit_code == 0, bare.output
    assert bare.stdout == spelled.stdout
    assert "lr: 0.5" in bare.stdout
