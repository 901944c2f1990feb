"""Scripts of environments of their own are no tests, and cannot be imported in this one."""

import math

import pytest

collect_ignore = ["atomai_rival.py", "atomai_serving.py", "http_rival.py", "http_speed.py"]
LARGE = 20_000  # scores of one row


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the large catalogues to `make bench`; the small ones run the same code in every run."""
    if config.getoption("benchmark_enable"):
        return
    large = [one for one in items if math.prod(_size(one)) > LARGE]
    config.hook.pytest_deselected(items=large)
    items[:] = [one for one in items if one not in large]


def _size(item: pytest.Item) -> tuple[int, int]:
    """Return members and conditions of a benchmark of the catalogue; (0, 0) of others."""
    callspec = getattr(item, "callspec", None)
    read = callspec.params.get("read") if callspec else None
    return (0, 0) if read is None else read
