"""Links from a page to a file outside ``docs`` become links to the repository; a missing file is a warning.

So one link serves readers of the repository and of the site, and ``mkdocs build --strict`` fails where it is broken.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<=\]\()((?:\.\./)+)([^)#\s]+)")
log = logging.getLogger("mkdocs.hooks.repository_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Returns the page with every link that leaves ``docs`` pointing at the repository."""
    docs = Path(config.docs_dir)
    root = docs.parent

    def rewrite(match: re.Match[str]) -> str:
        target = (docs / page.file.src_uri).parent / match.group(0)
        target = target.resolve()
        if target.is_relative_to(docs):
            return match.group(0)
        if not target.exists():
            log.warning("%s links to %s, which is not in the repository", page.file.src_uri, match.group(0))
        kind = "tree" if target.is_dir() else "blob"
        return f"{config.repo_url.rstrip('/')}/{kind}/main/{target.relative_to(root)}"

    return LINK.sub(rewrite, markdown)
