"""What MLflow and its artifact store hold that no version names, and how it is taken away."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils import get_results_from_paginated_fn

from manybeam.errors import Corrupt
from manybeam.zoo.refusals import speaking
from manybeam.zoo.registration import CODE_TAG
from manybeam.zoo.tracking import Tracking

PREFIX = "manybeam/"  # of our experiments' names; the ensemble's name follows
_PAGE = 1000
_all_of: Callable[..., list[Any]] = get_results_from_paginated_fn


@dataclass(frozen=True)
class Orphan:
    """A run of ours that no version points at: a registration that was cut off, or was removed.

    Attributes:
        name: of the ensemble it was to be a version of.
        run_id: of the run.
        last_sign: when it last did anything, in UTC.
        model_ids: LoggedModels it made that are still there, with their files.
    """

    name: str
    run_id: str
    last_sign: datetime
    model_ids: tuple[str, ...]


class Orphans:
    """What one MLflow holds that no version of it names.

    Args:
        tracking: the MLflow.
    """

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    @speaking()
    def find(self) -> list[Orphan]:
        """Return every run of ours that no version points at, and has anything left to remove.

        The versions are read last: what is registered while this looks is none.
        """
        client = self._tracking.client
        found = _all_of(
            lambda count, token: client.search_experiments(
                ViewType.ALL, count, f"name LIKE '{PREFIX}%'", page_token=token
            ),
            _PAGE,
        )
        names = {one.experiment_id: one.name.removeprefix(PREFIX) for one in found}
        if not names:  # MLflow's server takes no search of no experiments
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
        """Return what one run of an ensemble holds."""
        run = self._tracking.client.get_run(run_id)
        models = _by_run(self._models([run.info.experiment_id], run_id))
        return _orphan(name, run, models.get(run_id, []))

    @speaking()
    def close(self, orphan: Orphan) -> bool:
        """Close a run, so that it can become no version any more; False if it has become one.

        A registration ends its run before it adds the version, and MLflow lets nobody end a run
        that is deleted: so a registration that slept all this time fails, and leaves none.
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
        """Remove the files of a LoggedModel, then its entry; a second time does no harm.

        Raises:
            Corrupt: its files lie where other files may lie too; nothing was removed.
        """
        client = self._tracking.client
        location = client.get_logged_model(model_id).artifact_location
        if model_id not in location.split("/"):
            raise Corrupt(
                f"the files of {model_id} lie at {location}",
                "not in a folder of their own, so none is removed",
                "somebody changed the zoo's database by hand",
            )
        files: Any = get_artifact_repository(location, tracking_uri=self._tracking.uri)
        files.delete_artifacts()
        client.delete_logged_model(model_id)

    @speaking()
    def remove_version(self, name: str, version: int) -> None:
        """Remove a version from the registry; its files stay, named by nothing."""
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
        wanted = f"source_run_id = '{run_id}'" if run_id else None
        found: list[LoggedModel] = _all_of(
            lambda count, token: client.search_logged_models(
                experiment_ids, wanted, max_results=count, page_token=token
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
