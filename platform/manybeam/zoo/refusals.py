"""What MLflow and the packages below it raise, said in our errors.

It goes by the names of packages and needs none of them: mlflow is slow to import, and which
database driver or S3 client lies below it is the deployment's choice.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from manybeam.errors import (
    Conflict,
    InvalidInput,
    ManybeamError,
    NotAllowed,
    NotFound,
    WriteFailed,
    ZooUnreachable,
)

# MLflow's error codes that are an answer; any other means that it could not answer.
_ANSWERS: dict[str, type[ManybeamError]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "RESOURCE_ALREADY_EXISTS": Conflict,
    "INVALID_PARAMETER_VALUE": InvalidInput,
    "INVALID_STATE": Conflict,
    "PERMISSION_DENIED": NotAllowed,
    "UNAUTHENTICATED": NotAllowed,
    "CUSTOMER_UNAUTHORIZED": NotAllowed,
}
# What a database or server says that is there, but not as this MLflow needs it.
_OTHER_DATABASE = re.compile(
    r"out-of-date database schema|Can't locate revision|no such (table|column)|"
    r"(relation|column|table) .* does not exist"
)
_OTHER_SERVER = re.compile(r"failed with error code (404|405|501)|not a valid JSON|JSONDecodeError")
_BELOW = ("mlflow", "sqlalchemy", "sqlite3", "psycopg", "boto3", "botocore", "requests", "urllib3")


@contextmanager
def speaking() -> Iterator[None]:
    """Turn what is raised inside into our errors; errors that are ours or nobody's pass.

    Raises:
        NotFound, Conflict, InvalidInput, NotAllowed: MLflow answered no.
        WriteFailed: a disk is full.
        ZooUnreachable: there was no answer.
    """
    try:
        yield
    except ManybeamError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(error) from error
        answer = _ANSWERS.get(getattr(error, "error_code", ""))
        if answer is not None:
            raise answer(f"the zoo refused: {_first_line(error)}") from error
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _BELOW:
            raise _unreachable(error) from error
        raise


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].strip() if lines else type(error).__name__


def _unreachable(error: Exception) -> ZooUnreachable:
    line = _first_line(error)
    if _OTHER_DATABASE.search(line):
        return ZooUnreachable(
            f"the zoo's database is not one this MLflow can use: {line}",
            "another MLflow made it, or its migration stopped halfway",
            "back it up, then: mlflow db upgrade URL, with the MLflow that Manybeam installs",
        )
    if _OTHER_SERVER.search(line):
        return ZooUnreachable(
            f"what answers is no MLflow server, or of another version: {line}",
            "Manybeam needs the LoggedModels of MLflow 3",
            "MANYBEAM_TRACKING_URI must name such a server; manybeam doctor",
        )
    return ZooUnreachable(
        f"the zoo does not answer: {_first_line(error)}",
        "MLflow, its database and its artifact store all have to be up",
        "manybeam doctor; MANYBEAM_TRACKING_URI says where it is",
    )


def _disk_full(error: OSError) -> WriteFailed:
    return WriteFailed(
        f"weights cannot be written: {error.strerror}",
        "nothing was registered",
        "free space where MANYBEAM_HOME or MANYBEAM_ARTIFACTS lies, then register again",
    )
