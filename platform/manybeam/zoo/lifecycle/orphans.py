"""Orphans: data in MLflow and its artifact store that no version names, and their removal."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils import get_results_from_paginated_fn

from manybeam.errors import Corrupt
from manybeam.zoo.backend.refusals import speaking
from manybeam.zoo.backend.tracking import Tracking
from manybeam.zoo.records import EXPERIMENT_PREFIX
from manybeam.zoo.registration import CODE_TAG

_PAGE = 1000
_all_of: Callable[..., list[Any]] = get_results_from_paginated_fn


@dataclass(frozen=True)
class Orphan:
    """A run without a version: its registration did not finish, or its version was removed.

    Attributes:
        name: name of the ensemble.
        run_id: id of the run.
        last_sign: time of its last activity, in UTC.
        model_ids: its LoggedModels that still exist, with their files.
    """

    name: str
    run_id: str
    last_sign: datetime
    model_ids: tuple[str, ...]


class Orphans:
    """The orphans of one MLflow.

    Args:
        tracking: the MLflow.
    """

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    @speaking()
    def find(self) -> list[Orphan]:
        """Return all orphans that still have data to remove.

        The versions are read last, so that a version registered meanwhile is no orphan.
        """
        client = self._tracking.client
        found = _all_of(
            lambda count, token: client.search_experiments(
                ViewType.ALL, count, f"name LIKE '{EXPERIMENT_PREFIX}%'", page_token=token
            ),
            _PAGE,
        )
        names = {one.experiment_id: one.name.removeprefix(EXPERIMENT_PREFIX) for one in found}
        if not names:  # the server of MLflow refuses a search in an empty list
            return []
        runs = [run for run in self._runs(list(names)) if CODE_TAG in run.data.tags]
        models = _by_run(self._models(list(names)))
        versions = _all_of(
            lambda count, token: client.search_model_versions("", count, page_token=token), _PAGE
        )
        registered = {one.run_id for one in versions}
        return [
            _orphan(names[run.info.experiment_id], run, models.get(run.info.run_id, []))
            for run in runs
            if run.info.run_id not in registered
            if run.info.lifecycle_stage == "active" or run.info.run_id in models
        ]

    @speaking()
    def of_run(self, name: str, run_id: str) -> Orphan:
        """Return one run of an ensemble as an orphan."""
        run = self._tracking.client.get_run(run_id)
        models = _by_run(self._models([run.info.experiment_id], run_id))
        return _orphan(name, run, models.get(run_id, []))

    @speaking()
    def close(self, orphan: Orphan) -> bool:
        """Close a run, so that it cannot become a version; return False if it has become one.

        A registration ends its run before it adds the version, and a deleted run cannot be ended
        in MLflow. So a registration that continues after a long pause fails.
        """
        client, run_id = self._tracking.client, orphan.run_id
        if client.get_run(run_id).info.lifecycle_stage == "active":
            client.delete_run(run_id)
        if not list(client.search_model_versions(f"run_id = '{run_id}'", max_results=1)):
            return True
        client.restore_run(run_id)
        return False

    @speaking()
    def remove_model(self, model_id: str) -> None:
        """Remove the files of a LoggedModel, then its entry; it may be called again.

        Raises:
            Corrupt: its files are not in a separate folder; nothing was removed.
        """
        client = self._tracking.client
        location = client.get_logged_model(model_id).artifact_location
        if model_id not in location.split("/"):
            raise Corrupt(
                f"the files of {model_id} are in {location}",
                "this is not a separate folder of the model, so no file is removed",
                "check the database of the zoo; it was probably changed by hand",
            )
        files: Any = get_artifact_repository(location, tracking_uri=self._tracking.uri)
        files.delete_artifacts()
        client.delete_logged_model(model_id)

    @speaking()
    def remove_version(self, name: str, version: int) -> None:
        """Remove a version from the registry; its files stay, as an orphan."""
        self._tracking.client.delete_model_version(name, str(version))

    def _runs(self, experiment_ids: list[str]) -> list[Run]:
        client = self._tracking.client
        found: list[Run] = _all_of(
            lambda count, token: client.search_runs(
                experiment_ids, "", ViewType.ALL, count, page_token=token
            ),
            _PAGE,
        )
        return found

    def _models(self, experiment_ids: list[str], run_id: str = "") -> list[LoggedModel]:
        client = self._tracking.client
        condition = f"source_run_id = '{run_id}'" if run_id else None
        found: list[LoggedModel] = _all_of(
            lambda count, token: client.search_logged_models(
                experiment_ids, condition, max_results=count, page_token=token
            ),
            _PAGE,
        )
        return found


def _by_run(models: Iterable[LoggedModel]) -> dict[str, list[LoggedModel]]:
    found: dict[str, list[LoggedModel]] = {}
    for model in models:
        if model.source_run_id:
            found.setdefault(model.source_run_id, []).append(model)
    return found


def _orphan(name: str, run: Run, models: list[LoggedModel]) -> Orphan:
    moments_ms = [run.info.start_time, run.info.end_time or 0]
    moments_ms += [one.last_updated_timestamp for one in models]
    last_sign = datetime.fromtimestamp(max(moments_ms) / 1000, UTC)
    return Orphan(name, run.info.run_id, last_sign, tuple(one.model_id for one in models))
