from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def good(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The evidence of two sound runs. Copy it before changing anything in it."""
    return {
        "sft": request.getfixturevalue("sft_run").evidence(),
        "dpo": request.getfixturevalue("dpo_run").evidence(),
    }
