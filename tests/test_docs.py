"""Every code block of the README and the documentation runs, or its commands are read as the program reads them.

Python blocks run page by page, in order, in one namespace and in an empty folder. Only the download of weights is
replaced, by random weights (:mod:`tests.random_weights`). Of shell blocks every command is parsed:
those of ``alt`` by its own parser, those of ``make`` by a dry run, requirements by the packaging library.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.random_weights import Downloads

ROOT = Path(__file__).resolve().parents[1]
open_clip = pytest.importorskip("open_clip")

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/families/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)

#: Pages whose models have the size of ViT-B/16 or which need more than a few seconds.
SLOW = {
    "docs/baselines.md",
    "docs/corpus.md",
    "docs/cost.md",
    "docs/entity_world.md",
    "docs/families/open_clip.md",
    "docs/families/torchvision.md",
    "docs/index.md",
    "docs/models.md",
    "docs/xclip.md",
}

#: Packages inside alt whose exported names have a place in docs/api/rooms.md.
ROOMS = ("corpus", "cost", "evaluate", "export", "hosts", "measure", "models", "patch", "train", "visualize")

#: First words of commands that are not run and not parsed, with the reason.
NOT_PARSED = {
    "apt-get": "changes the system",
    "sudo": "changes the system",
    "torchrun": "starts processes on several machines; the command behind -m is parsed",
    "git": "reads a repository that is not there in an sdist",
    "mkdir": "the shell's own",
    "if": "the shell's own",
    "srun": "needs SLURM; the command behind it is parsed",
}


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        found += [
            Block(page, text[: match.start()].count("\n") + 1, match[2], match[3]) for match in FENCE.finditer(text)
        ]
    return found


BLOCKS = blocks()
PYTHON_PAGES = sorted({block.page for block in BLOCKS if block.language == "python"})
SHELL = [block for block in BLOCKS if block.language == "sh"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_block_says_what_it_is() -> None:
    wrong = [f"{name(b.page)}:{b.line}" for b in BLOCKS if b.language not in {"python", "sh", "yaml", "text"}]
    assert not wrong, f"code blocks that are not python, sh, yaml or text: {wrong}"
    indented = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        indented += [f"{name(page)}: {line}" for line in re.findall(r"(?<=\n\n)    (?![-*|]).*", text)]
    assert not indented, f"indented code blocks, which no test sees: {indented}"


# --------------------------------------------------------------------------------------------------- Python blocks


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Downloads]:
    """Random weights for all pages, made when they are asked for."""
    folder = tmp_path_factory.mktemp("weights")
    yield Downloads(folder)
    shutil.rmtree(folder)


def page_parameters() -> list[Any]:
    return [
        pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW else [])
        for page in PYTHON_PAGES
    ]


@pytest.mark.parametrize("page", page_parameters())
def test_python_blocks_run(page: Path, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block for block in BLOCKS if block.page == page and block.language == "python"]
    downloads.replace(monkeypatch, "".join(block.text for block in found))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        where = f"{name(page)}:{block.line}"
        if ">>>" in block.text:
            session = doctest.DocTestParser().get_doctest(block.text, namespace, where, where, block.line)
            assert doctest.DocTestRunner().run(session).failed == 0, where
        else:
            padded = "\n" * block.line + block.text  # so that a traceback names the line of the page
            exec(compile(padded, str(page), "exec"), namespace)


def test_yaml_blocks_are_configurations(tmp_path: Path) -> None:
    """Or data sets, where a block names their formats."""
    from alt.train import load_config
    from alt.train.data_sets import read_sets

    found = [block for block in BLOCKS if block.language == "yaml" and block.page.parent.name == "docs"]
    assert found
    for number, block in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.text)
        (read_sets if "{format:" in block.text else load_config)(path)


# ---------------------------------------------------------------------------------------------------- shell blocks


def commands(block: Block) -> list[list[str]]:
    """Returns the words of every command of a block, without comments; ``A=b`` before a command is dropped."""
    text = block.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                del command[0]
            if command:
                found.append(command)
    return found


def parse_alt(arguments: list[str]) -> None:
    """Raises a usage error if ``alt`` would. Files that a page only names need not be there."""
    import typer
    from typer.main import get_command

    from alt.cli import build_app

    app = get_command(build_app())
    if not arguments or arguments[0].startswith("-"):
        return
    command = app.get_command(typer.Context(app), arguments[0])
    assert command is not None, f"alt has no command {arguments[0]!r}"
    if "--help" in arguments:
        return
    if hasattr(command, "commands"):  # the words choose one of its commands; without any, its default
        inner = command.make_context(arguments[0], arguments[1:])
        arguments = [*inner._protected_args, *inner.args]
        command = command.get_command(inner, arguments[0])
        assert command is not None, arguments
    eager = {name for parameter in command.params if parameter.is_eager for name in parameter.opts}
    try:
        command.make_context(arguments[0], [word for word in arguments[1:] if word not in eager])
    except typer.BadParameter as error:
        if "does not exist" not in error.format_message():
            raise


def parse_make(arguments: list[str]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CFLAGS": os.environ.get("CFLAGS", "")},
    )  # fmt: skip
    assert done.returncode == 0, f"make {' '.join(arguments)}: {done.stderr}"


def parse_pip(arguments: list[str]) -> None:
    """Every requirement is one that pip reads, and every extra of ours one that we have."""
    assert arguments[0] == "install"
    words = [word for word in arguments[1:] if not word.startswith("-")]
    assert words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        ours = re.fullmatch(r"(?:\.|\./alt_kernels\S*?|alt-kernels)(?:\[([\w,-]+)\])?", word)
        if ours is None:
            Requirement(word)
        else:
            assert set(filter(None, (ours[1] or "").split(","))) <= extras.keys(), word


def parse_python(arguments: list[str]) -> None:
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).exists(), arguments
    elif arguments[1] == "alt.cli":
        parse_alt(arguments[2:])
    else:
        assert importlib.util.find_spec(arguments[1]), arguments


def parse(words: list[str]) -> None:
    program, *rest = words
    if program == "torchrun":
        parse_python(rest[rest.index("-m") :])
    elif program == "srun":
        parse(rest)
    elif program == "pytest":
        assert (ROOT / rest[0]).exists()
    elif program in (readers := {"alt": parse_alt, "make": parse_make, "pip": parse_pip, "python": parse_python}):
        readers[program](rest)
    else:
        assert program in NOT_PARSED, f"{shlex.join(words)}: no test reads this command"


@pytest.mark.parametrize("block", SHELL, ids=[f"{name(block.page)}:{block.line}" for block in SHELL])
def test_commands_are_read_by_their_programs(block: Block) -> None:
    found = commands(block)
    assert found
    for words in found:
        parse(words)


@pytest.mark.parametrize(
    "line",
    ["alt eval run --veiws 1x3", "make instal", "pip install '.[modles]'", "python -m alt.nothing", "rm -r x"],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"veiws|instal|modles|alt\.nothing|no test reads"):
        parse(shlex.split(line))


# ----------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", [page for page in PAGES if ROOT / "docs" not in page.parents], ids=name)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    """`make docs` checks the links of the site itself."""
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    for target in re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text())):
        if target.startswith(home):
            target = re.sub(r"^/(?:blob|tree|raw)/main/", "", target.removeprefix(home))
            assert (ROOT / target).exists(), f"{name(page)}: {target}"
        elif not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name(page)}: {target}"


def test_reference_has_every_exported_name() -> None:
    """docs/api has a section for every name that the two packages export."""
    text = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    for package in ("alt", "alt_kernels"):
        exported = importlib.import_module(package).__all__
        assert exported
        missing = [x for x in exported if not re.search(rf"^::: {package}\.{x}$", text, re.M)]
        assert not missing, f"docs/api/{package}.md lacks {missing}"
    for room in ROOMS:
        names = set(importlib.import_module(f"alt.{room}").__all__) - set(importlib.import_module("alt").__all__)
        missing = [x for x in names if not x.isupper() and not re.search(rf"^::: alt\.{room}\.{x}$", text, re.M)]
        assert not missing, f"docs/api/rooms.md lacks {missing} of alt.{room}"
