"""Files of a zoo that were moved: the addresses in MLflow's database follow them.

A home is renamed, copied or moved, or the bucket of the weights changes. The files below the
configured store of weights have the same names as before, so the database is corrected when the
zoo is opened. The bytes are checked against their digests as always.
"""

import logging

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from manybeam.addresses import SQLITE, sqlite_path
from manybeam.db.places import experiment_places, model_places, move_places
from manybeam.errors import ManybeamError, NotAllowed, WriteFailed
from manybeam.zoo.records import EXPERIMENT_PREFIX

logger = logging.getLogger(__name__)

_MODELS = "models"  # the folder of an experiment in which MLflow keeps LoggedModels


def experiment_place(artifacts: str, experiment: str) -> str:
    """Return the address of an experiment's files below a store of weights."""
    return f"{artifacts.rstrip('/')}/{experiment}"


def follow_moved_files(uri: str, artifacts: str) -> None:
    """Correct the addresses of experiments whose files are below another store than recorded.

    An experiment moves if the configured store has at least as many of its members as the
    recorded place. So a copied home uses its own copy, and a store that was named before its
    files were copied changes nothing. Two machines that reach one store by different paths rewrite
    the addresses in turn; `Tracking.read_file` therefore corrects them again before it gives up.

    Args:
        uri: URL of MLflow's database, not of a server: a server gives addresses that do not
            depend on its store.
        artifacts: the configured store of weights.

    Raises:
        NotAllowed: files were moved, and the database cannot be written.
    """
    is_file = uri.startswith(SQLITE)
    if not (sqlite_path(uri).exists() if is_file else uri.startswith("postgresql")):
        return
    try:
        places = experiment_places(uri, EXPERIMENT_PREFIX)
    except ManybeamError as error:
        logger.info("addresses of files were not checked: %s", error)
        return  # MLflow's next call gives its own reason
    moved = []
    for experiment, before in places.items():
        after = experiment_place(artifacts, experiment)
        if before != after and _are_there(uri, before, after):
            try:
                move_places(uri, before, after)
            except (WriteFailed, NotAllowed) as error:
                raise _uncorrected(before, after, error) from error
            moved.append(before)
    if moved:
        logger.warning(
            "the files of the zoo were moved; it finds them now below %s",
            artifacts,
            extra={"before": moved[:20]},
        )


def _uncorrected(before: str, after: str, error: ManybeamError) -> NotAllowed:
    return NotAllowed(
        f"the files of the zoo were moved to {after}, but their addresses name {before} and "
        f"cannot be corrected: {error.what}",
        "nothing is lost; the addresses are in the database of the zoo, which cannot be written",
        "run any manybeam command once as a user who may write there, or move the files back",
    )


def _are_there(uri: str, before: str, after: str) -> bool:
    """Return whether files of an experiment are at the new place, and not more at the old one."""
    known = {place.removeprefix(f"{before}/") for place in model_places(uri, before)}
    names = {place.split("/")[1] for place in known if place.startswith(f"{_MODELS}/")}
    here = _count(names, after)
    return here > 0 and here >= _count(names, before)


def _count(names: set[str], place: str) -> int:
    """Return how many models are at a place; 0 if it cannot be read, as a store that is down."""
    try:
        return len(names & _listed(place))
    except Exception as error:  # noqa: BLE001 - whatever a store raises, it is of no use
        logger.info("a place of files cannot be read: %s", error, extra={"place": place})
        return 0


def _listed(place: str) -> set[str]:
    """Return the names of the models below the address of an experiment."""
    found = get_artifact_repository(place).list_artifacts(_MODELS)
    return {file.path.rpartition("/")[2] for file in found}
