"""zoo.cache: bytes are given out only if they have the digest that was asked for."""

from pathlib import Path

import pytest

from manybeam.errors import Corrupt
from manybeam.zoo.cache import Cache, sha256_of

CONTENT = b"weights"
DIGEST = sha256_of(CONTENT)


def never() -> bytes:
    raise AssertionError("downloaded again")


def test_a_file_is_downloaded_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get(DIGEST, lambda: CONTENT, "weights") == CONTENT
    assert cache.get(DIGEST, never, "weights") == CONTENT


def test_a_damaged_file_is_downloaded_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / DIGEST).write_bytes(b"weighty")
    assert cache.get(DIGEST, lambda: CONTENT, "weights") == CONTENT
    assert cache.get(DIGEST, never, "weights") == CONTENT


def test_downloaded_bytes_of_another_digest_are_refused_and_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(Corrupt, match="weights of member 03 are not the bytes"):
        cache.get(DIGEST, lambda: b"other", "weights of member 03")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert Cache(tmp_path / "taken").get(DIGEST, lambda: CONTENT, "weights") == CONTENT
