"""The implementations every op is tested in."""

from __future__ import annotations

import pytest

from alt_kernels import testing


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    """Skipped only where the implementation cannot run, with the reason that ``backends()`` gives."""
    reason = testing.unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param
