"""The project's own zoo and jobs folders, which come with the package: a copy to start from."""

import shutil
import tempfile
from pathlib import Path

from manybeam.errors import InvalidInput
from manybeam.settings import starter_folder
from manybeam.spec.files import yaml_files

FOLDERS = ("zoo", "jobs")


def copy_starter(target: Path) -> dict[str, int]:
    """Copy conditions, policies, recipes and jobs into a folder; return how many of each.

    Both folders appear whole, or not at all.

    Raises:
        InvalidInput: one of the two folders is there already; or the folder cannot be written.
    """
    if there := [str(target / name) for name in FOLDERS if (target / name).exists()]:
        raise InvalidInput(
            f"{' and '.join(there)} exist already" if there[1:] else f"{there[0]} exists already",
            "files that you may have changed are never overwritten",
            "choose another folder",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".new-") as folder:
            for name in FOLDERS:
                shutil.copytree(starter_folder() / name, Path(folder) / name)
            for name in FOLDERS:
                (Path(folder) / name).rename(target / name)
    except OSError as error:
        raise InvalidInput(
            f"{target} cannot be written: {error.strerror}", "", "choose another folder"
        ) from error
    kinds = {kind: target / "zoo" / kind for kind in ("conditions", "policies", "recipes")}
    kinds["jobs"] = target / "jobs"
    return {kind: len(yaml_files(folder)) for kind, folder in kinds.items()}


def job_here(path: Path) -> Path:
    """Return the path of a job; of one that is not here, the path of the copy in the package.

    A job of the package is named as in its README: `jobs/quickstart.yaml`.
    """
    ours = starter_folder() / "jobs" / path.name
    is_named_so = not path.is_absolute() and path.parent.name in ("", "jobs")
    return ours if is_named_so and not path.exists() and ours.is_file() else path
