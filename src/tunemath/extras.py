"""The command that adds an extra to this very installation, wherever it came from."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["install_command"]

_NAME = "tunemath"


def install_command(extra: str) -> str:
    """Return the command that installs an extra from where this package was installed from.

    That is the folder of a clone, a wheel or a repository's address, as pip wrote it down; where
    it wrote nothing, the package came from an index, and its name is enough.
    """
    try:
        recorded = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # run from its source, not installed
        return _in_the_repository(extra)
    if recorded is None:
        return f"pip install {shlex.quote(f'{_NAME}[{extra}]')}"
    origin = json.loads(recorded)
    url = origin["url"]
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        place = f"{_NAME}[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
        return f"pip install {shlex.quote(place)}"
    if urlsplit(url).scheme != "file":
        return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ {url}')}"
    path = Path(unquote(urlsplit(url).path))
    if not path.exists():
        return _in_the_repository(extra)
    edited = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {edited}{shlex.quote(f'{path}[{extra}]')}"


def _in_the_repository(extra: str) -> str:
    return f"pip install '.[{extra}]' in the repository's folder"
