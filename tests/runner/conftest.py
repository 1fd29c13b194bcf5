from __future__ import annotations

import pytest
from small_models import make_llama, make_sliding


@pytest.fixture(params=[make_llama, make_sliding], ids=["llama", "sliding-window"])
def any_model(request: pytest.FixtureRequest):
    return request.param()


@pytest.fixture
def llama():
    return make_llama()
