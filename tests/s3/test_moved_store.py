"""zoo.backend.moved: weights in a bucket, records in a file or in PostgreSQL; both may move."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from manybeam.data.store import open_store
from manybeam.db.places import experiment_places
from manybeam.errors import Corrupt
from manybeam.zoo.registry import Zoo

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def move(before: str, after: str) -> int:
    """Move every object of one place to another; return how many there were."""
    old, new = open_store(before), open_store(after)
    keys = old.list("")
    for key in keys:
        new.put(key, old.get(key))
        old.delete(key)
    return len(keys)


@pytest.fixture(
    params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres_server"))]
)
def records(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of MLflow's database: a file, and a database of its own in a real PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/zoo.db"
    url = request.getfixturevalue("postgres_server").settings()["MANYBEAM_DATABASE_URL"]
    name = f"zoo_{uuid.uuid4().hex}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return engine.url.set(database=name).render_as_string(hide_password=False)


@pytest.mark.needs("s3_server")
def test_weights_in_a_bucket_are_found_after_they_were_moved(
    records: str, s3_url: str, tmp_path: Path, tiny_members: Any
) -> None:
    before, after = f"{s3_url}/weights", f"{s3_url}/moved/{uuid.uuid4().hex}"
    first = Zoo(records, before, tmp_path / "cache-1")
    first.register("graphene", tiny_members(2), job={"kind": "train"}, alias="serving")
    assert move(before, after)
    with pytest.raises(Corrupt) as caught:
        Zoo(records, before, tmp_path / "cache-2").members("graphene")
    assert "MANYBEAM_ARTIFACTS" in caught.value.hint
    moved = Zoo(records, after, tmp_path / "cache-3")
    assert len(moved.members("graphene")) == 2
    assert set(experiment_places(records, "manybeam/").values()) == {f"{after}/manybeam/graphene"}
    moved.register("graphene", tiny_members(1), job={"kind": "train"})
    assert moved.resolve("graphene@2").member_count == 1
    assert not open_store(before).list("")
