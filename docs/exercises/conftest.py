"""Give every test the answer beside it: test_prompt.py tests prompt.py."""

import pytest

from docs.exercises import harness


@pytest.fixture
def answer(request):
    return harness.load(request.path.with_name(request.path.name.removeprefix("test_")))
