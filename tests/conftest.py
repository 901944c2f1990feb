"""Fixtures that several test modules share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real frames beside the checkout; their absence is a failure, never a skip."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    assert folder.is_dir(), f"real frames expected in {folder}; put them there"
    return folder
