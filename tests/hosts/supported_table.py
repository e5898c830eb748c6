"""The table of docs/hosts.md, from ``alt.supported_hosts()``. ``python -m tests.hosts.supported_table`` writes it."""

from __future__ import annotations

from pathlib import Path

from alt.hosts.built_in import list_built_in

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hosts.md"
BEGIN, END = "<!-- hosts:begin -->\n", "<!-- hosts:end -->"


def table() -> str:
    lines = ["| package (tested with) | classes | exact |", "| --- | --- | --- |"]
    for host in list_built_in():
        classes = ", ".join(name if " " in name else f"`{name}`" for name in host.classes)
        lines.append(f"| {host.package} {host.tested} | {classes} | {host.exact} |")
    return "\n".join(lines) + "\n"


def replace_part(page: str, begin: str, text: str, end: str) -> str:
    """The page with ``text`` between its two marks."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def with_table(page: str) -> str:
    return replace_part(page, BEGIN, table(), END)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
