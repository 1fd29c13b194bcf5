"""Writes the pages that come whole from the code, API and course, before Sphinx reads any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import api_pages
import course_pages
from sphinx.application import Sphinx

from tunemath.course.book import exercises

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Write docs/api and docs/course, which git ignores."""
    app.connect("builder-inited", lambda app: _write(Path(app.srcdir)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(docs: Path) -> None:
    files = {"api/index.md": api_pages.index_page(), "course/index.md": course_pages.index_page()}
    for name in api_pages.MODULES:
        files[f"api/{name}.md"] = api_pages.module_page(name)
    for each in exercises():
        stem = f"course/{course_pages.stem(each)}"
        files[f"{stem}.md"] = course_pages.exercise_page(each)
        files[f"{stem}.ipynb"] = course_pages.notebook(each)
        files[f"{stem}.svg"] = course_pages.figure(each)
    for name, text in files.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
