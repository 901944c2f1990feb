"""The calls of MLflow: runs, LoggedModels with files, metrics by dataset, versions, aliases.

Only this module, `moved`, `lifecycle.orphans` and `backup.parts` import mlflow, which takes two
seconds; so `registry` imports this module only if it must ask MLflow. Errors of MLflow are
translated here, and every wait is bounded.
"""

import hashlib
import logging
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# MLflow reads these at import or at a call; values of an operator have priority. With its defaults
# it would wait 7 times two minutes for a dead server, send telemetry, and print bars and links.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
    "PGCONNECT_TIMEOUT": "10",
    "AWS_MAX_ATTEMPTS": "2",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# The environment above has to be set first, so every import from here on is late (E402).
import mlflow.artifacts  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, FileInfo, LoggedModel, Metric, ViewType  # noqa: E402
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import (  # noqa: E402
    get_artifact_repository,
)
from mlflow.store.entities import PagedList  # noqa: E402
from mlflow.utils.file_utils import local_file_uri_to_path  # noqa: E402

from manybeam.addresses import SQLITE, sqlite_path, sqlite_url  # noqa: E402
from manybeam.errors import Conflict, Corrupt, ManybeamError, NotFound  # noqa: E402
from manybeam.settings import settings  # noqa: E402
from manybeam.zoo.backend.moved import experiment_place, follow_moved_files  # noqa: E402
from manybeam.zoo.backend.refusals import speaking  # noqa: E402
from manybeam.zoo.checks import check_folder, check_tracking_uri  # noqa: E402
from manybeam.zoo.matrix import CLASSICAL, SELECTED, Score  # noqa: E402
from manybeam.zoo.records import EXPERIMENT_PREFIX, VersionEntry  # noqa: E402

logger = logging.getLogger(__name__)

# It would print a traceback for each error that is translated here.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)

_PREFIXES = {CLASSICAL: "classical.", SELECTED: "selected."}  # of names of metrics
_METRICS_PER_CALL = 1000  # the limit of MLflow
_PAGE = 1000
_MODELS = 50  # of one page: MLflow allows no more
_EXPERIMENTS = 100  # ids in one request

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFiles:
    """The id of a LoggedModel and the address of its files, as stored in MLflow."""

    id: str
    place: str


class Tracking:
    """One MLflow: its server or its database, and its store of files.

    Args:
        uri: http(s) address of a server, or URL of a database (`sqlite:///...`).
        artifacts: store of files if MLflow has no server.
    """

    def __init__(self, uri: str, artifacts: str) -> None:
        check_tracking_uri(uri)
        self.uri, self.artifacts = uri, artifacts
        self.is_server = uri.startswith(("http://", "https://"))
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The client, made at its first use, because this already connects to the database."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    @speaking()
    def check_files(self) -> None:
        """Ask the store of the files; raises ZooUnreachable if it does not answer."""
        place = self.artifacts
        if self.is_server:
            place = self.client.get_experiment("0").artifact_location
        mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=self.uri)

    def follow_moved(self) -> None:
        """Correct the addresses of files that were moved with the home, or to another store."""
        if not self.is_server:
            _lend_s3_credentials(self.artifacts)
            follow_moved_files(self.uri, self.artifacts)

    @speaking()
    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if needed. Two processes get the same one."""
        location = None if self.is_server else experiment_place(self.artifacts, name)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            with suppress(Conflict), speaking():
                return str(self.client.create_experiment(name, artifact_location=location))
            found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise Conflict(
                f"the experiment {name!r} of MLflow was deleted",
                "the zoo needs it for the runs of an ensemble",
                "restore it in MLflow, or give the ensemble another name",
            )
        return str(found.experiment_id)

    @speaking()
    def check_writable(self, name: str, byte_count: int) -> None:
        """Refuse a store of files that cannot be written to; a small file is written and removed.

        Args:
            name: name of the ensemble whose files are to be written.
            byte_count: size of these files at least.
        """
        experiment_id = self.experiment(f"{EXPERIMENT_PREFIX}{name}")
        place = str(self.client.get_experiment(experiment_id).artifact_location)
        if place.startswith("file:"):
            folder: str = local_file_uri_to_path(place)  # type: ignore[no-untyped-call]
            check_folder(Path(folder), byte_count)
            return
        files: Any = get_artifact_repository(f"{place}/probe-{uuid.uuid4().hex}", self.uri)
        with tempfile.TemporaryDirectory() as temporary:
            probe = Path(temporary) / "probe"
            probe.write_bytes(b"0")
            files.log_artifact(str(probe))
        try:
            files.delete_artifacts()
        except Exception as error:  # noqa: BLE001 - the right to write is enough for a training
            logger.info("a small file of a check stays: %s", error, extra={"place": place})

    @speaking()
    def start_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of a new run; MLflow stores metrics and datasets by run."""
        run = self.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @speaking()
    def end_run(self, run_id: str) -> None:
        """Mark a run as finished."""
        self.client.set_terminated(run_id, "FINISHED")

    def abandon_run(self, run_id: str) -> None:
        """Mark a run as failed if MLflow still answers; the mark is only information."""
        with suppress(ManybeamError), speaking():
            self.client.set_terminated(run_id, "FAILED")

    @speaking()
    def add_model(
        self,
        experiment_id: str,
        run_id: str,
        name: str,
        *,
        kind: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        files: Mapping[str, bytes],
    ) -> str:
        """Return the id of a new LoggedModel that holds `files`.

        It is the same as `mlflow.create_external_model`, but with the client of this object
        instead of the global one, and with one upload instead of two.
        """
        model = self.client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            tags={**tags, "mlflow.model.isExternal": "true"},
            params=dict(params),
            model_type=kind,
        )
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                (Path(folder) / path).write_bytes(content)
            self.client.log_model_artifacts(model.model_id, folder)
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    @speaking()
    def models(self) -> list[ModelFiles]:
        """Return the address of the files of every LoggedModel, in any state."""
        experiments = _all_pages(
            lambda token: self.client.search_experiments(
                ViewType.ALL, max_results=_PAGE, page_token=token
            )
        )
        ids = [one.experiment_id for one in experiments]
        found = [
            one
            for start in range(0, len(ids), _EXPERIMENTS)
            for one in self._models_of(ids[start : start + _EXPERIMENTS])
        ]
        return [ModelFiles(str(one.model_id), str(one.artifact_location)) for one in found]

    def _models_of(self, experiments: Sequence[str]) -> Iterator[LoggedModel]:
        return _all_pages(
            lambda token: self.client.search_logged_models(
                list(experiments), max_results=_MODELS, page_token=token
            )
        )

    def read_file(self, model_id: str, path: str) -> bytes:
        """Return one file of a LoggedModel.

        Raises:
            Corrupt: the files can be listed, and this file is missing.
            ZooUnreachable: the files cannot be listed.
        """
        try:
            return self._download(model_id, path)
        except ManybeamError as error:
            fault = error
        if not self.is_server:
            # Another machine that reaches the store by another path may have changed the addresses.
            self.follow_moved()
            with suppress(ManybeamError):
                return self._download(model_id, path)
        listed: Sequence[FileInfo] = ()
        with suppress(NotFound), speaking():
            listed = self.client.list_logged_model_artifacts(model_id)
        if any(file.path == path for file in listed):
            raise fault
        raise self._missing(model_id, path)

    @speaking()
    def _download(self, model_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            location = self.client.get_logged_model(model_id).artifact_location
            found = mlflow.artifacts.download_artifacts(
                f"{location}/{path}", dst_path=folder, tracking_uri=self.uri
            )
            return Path(found).read_bytes()

    def _missing(self, model_id: str, path: str) -> Corrupt:
        """Return the error of a file that is not at its address."""
        try:
            with speaking():
                place = self.client.get_logged_model(model_id).artifact_location
                why = f"it was registered as {place}/{path}"
        except NotFound:
            why = "MLflow has no such LoggedModel: its database was damaged or changed by hand"
        restore = "restore the artifact store from its backup: manybeam restore"
        moved = "if the files were moved, set MANYBEAM_ARTIFACTS to their new place"
        hint = restore if self.is_server else f"{moved}; if they are lost, {restore}"
        return Corrupt(
            f"{path} of {model_id} is missing in the artifact store",
            why,
            hint,
        )

    @speaking()
    def log_scores(
        self, run_id: str, model_ids: Mapping[int, str], rows: Sequence[Score], number: int
    ) -> None:
        """Log the last score of each pair with the dataset of its condition, in few calls.

        MLflow identifies a metric by (model, name, time, step, run), without the dataset, and a
        metric of a run also without the model. So each condition of each report has a different
        step, and each member a different millisecond. Of a pair that was measured several times,
        as in a package, the last score counts; the score report holds all.

        Args:
            run_id: run of the version.
            model_ids: LoggedModel of each row of scores.
            rows: the scores of one report.
            number: number of the report.
        """
        rows = list({(r.member, r.condition, r.condition_digest): r for r in rows}.values())
        conditions = {(row.condition, row.condition_digest): None for row in rows}
        datasets = [
            DatasetInput(Dataset(name, digest, "manybeam-condition", "{}"))
            for name, digest in conditions
        ]
        self.client.log_inputs(run_id, datasets)
        now_ms = int(time.time() * 1000)
        moment = {
            member: now_ms + i for i, member in enumerate(dict.fromkeys(r.member for r in rows))
        }
        metrics = [
            Metric(
                f"{_PREFIXES.get(row.member, '')}{key}",
                value,
                moment[row.member],
                condition_step(row.condition, row.condition_digest, number),
                model_id=model_ids[row.member],
                dataset_name=row.condition,
                dataset_digest=row.condition_digest,
                run_id=run_id,
            )
            for row in rows
            for key, value in row.values.items()
        ]
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    @speaking()
    def add_version(self, name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> int:
        """Return the number of a new version of a LoggedModel."""
        with suppress(Conflict), speaking():
            self.client.create_registered_model(name)
        # With a database, the client would search `models:/...` in the global MLflow, not in this.
        source = (
            f"models:/{model_id}"
            if self.is_server
            else self.client.get_logged_model(model_id).artifact_location
        )
        made = self.client.create_model_version(name, source, run_id, dict(tags), model_id=model_id)
        return int(made.version)

    @speaking()
    def version(self, name: str, number: int) -> VersionEntry:
        """Return one version; raises NotFound."""
        return _entry(self.client.get_model_version(name, str(number)))

    @speaking()
    def version_by_alias(self, name: str, alias: str) -> VersionEntry:
        """Return the version of an alias; raises NotFound or InvalidInput."""
        return _entry(self.client.get_model_version_by_alias(name, alias))

    @speaking()
    def versions(self, name: str | None = None) -> list[VersionEntry]:
        """Return all versions of the zoo, or of one ensemble, with aliases; it needs two calls."""
        condition = None if name is None else f"name = '{name}'"
        models = _all_pages(
            lambda token: self.client.search_registered_models(condition, _PAGE, page_token=token)
        )
        aliases: dict[tuple[str, int], tuple[str, ...]] = {}
        for model in models:
            for alias, number in dict(model.aliases).items():
                if not str(number).isdecimal():
                    logger.warning(
                        "%s@%s is left out: its version is %r", model.name, alias, number
                    )
                    continue
                place = (model.name, int(number))
                aliases[place] = (*aliases.get(place, ()), alias)
        found = _all_pages(
            lambda token: self.client.search_model_versions(condition, _PAGE, page_token=token)
        )
        entries = [_entry(one, aliases) for one in found if _has_number(one)]
        return sorted(
            (one for one in entries if one.is_ours), key=lambda entry: (entry.name, -entry.version)
        )

    @speaking()
    def tag_version(self, name: str, number: int, key: str, value: str) -> None:
        """Set or replace a tag of a version."""
        self.client.set_model_version_tag(name, str(number), key, value)

    @speaking()
    def untag_version(self, name: str, number: int, key: str) -> None:
        """Remove a tag of a version, if it has it."""
        with suppress(NotFound), speaking():
            self.client.delete_model_version_tag(name, str(number), key)

    @speaking()
    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version, also if it points to another one."""
        self.client.set_registered_model_alias(name, alias, str(version))

    @speaking()
    def _connect(self) -> MlflowClient:
        _lend_s3_credentials(self.artifacts)
        with warnings.catch_warnings():
            # MLflow uses an option of SQLAlchemy that 2.1 deprecates.
            warnings.filterwarnings("ignore", message="The ``noload``", category=DeprecationWarning)
            if not self.is_server:
                _prepare_database(self.uri)
            client = MlflowClient(self.uri, self.uri)
        self.follow_moved()
        return client


def _prepare_database(uri: str) -> None:
    """Limit the wait for a database, and create the file of the embedded zoo if it is new.

    MLflow creates its tables one by one. Two processes at the same time, or a killed process,
    would leave a file that cannot be opened. So the file is created under another name, and gets
    its name when it is complete.
    """
    import mlflow.store.db.utils as database

    database.MAX_RETRY_COUNT = 2  # ten tries with doubling pauses would be 100 s
    # MLflow would make a folder with the name as the URL writes it, `%25` for `%`.
    database._make_parent_dirs_if_sqlite = lambda db_uri: None  # noqa: ARG005
    path = sqlite_path(uri)
    if not uri.startswith(SQLITE) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        fresh = Path(folder) / path.name
        MlflowClient(sqlite_url(fresh), sqlite_url(fresh))
        with suppress(FileExistsError):
            path.hardlink_to(fresh)


def condition_step(condition: str, digest: str, number: int) -> int:
    """Return the step of a condition in MLflow: the report's number and 48 bits of a digest."""
    text = f"{condition} {digest}".encode()
    return (number % (1 << 14) << 48) + int.from_bytes(hashlib.sha256(text).digest()[:6])


def _all_pages(page_at: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Yield the results of all pages of a search."""
    token: str | None = None
    while True:
        page = page_at(token)
        yield from page
        token = page.token
        if not token:
            return


def _has_number(found: ModelVersion) -> bool:
    if str(found.version).isdecimal():
        return True
    logger.warning("a version of %s is left out: its number is %r", found.name, found.version)
    return False


def _entry(
    found: ModelVersion, aliases: Mapping[tuple[str, int], tuple[str, ...]] | None = None
) -> VersionEntry:
    number = int(found.version)
    known = found.aliases if aliases is None else aliases.get((found.name, number), ())
    tags = {key: value or "" for key, value in found.tags.items()}
    return VersionEntry(found.name, number, found.run_id or "", tags, tuple(sorted(known)))


def _lend_s3_credentials(artifacts: str) -> None:
    """Copy credentials to the environment, because the S3 client of MLflow reads only it."""
    if not artifacts.startswith("s3://"):
        return
    known = settings()
    lent = {
        "MLFLOW_S3_ENDPOINT_URL": known.s3_endpoint,
        "AWS_ACCESS_KEY_ID": known.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": known.s3_secret_key.get_secret_value(),
        "AWS_DEFAULT_REGION": known.s3_region,
    }
    for name, value in lent.items():
        if value:
            os.environ.setdefault(name, value)
