"""Translation of errors of MLflow and its packages into errors of Manybeam.

It uses the names of packages and imports none of them: mlflow is slow to import, and the database
driver and the S3 client depend on the deployment.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from manybeam.addresses import unreached_hint
from manybeam.errors import (
    Conflict,
    InvalidInput,
    ManybeamError,
    NotAllowed,
    NotFound,
    WriteFailed,
    ZooUnreachable,
)
from manybeam.settings import settings

# Error codes that are an answer of MLflow; any other code means that it could not answer.
_ANSWERS: dict[str, type[ManybeamError]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "RESOURCE_ALREADY_EXISTS": Conflict,
    "INVALID_PARAMETER_VALUE": InvalidInput,
    "INVALID_STATE": Conflict,
    "PERMISSION_DENIED": NotAllowed,
    "UNAUTHENTICATED": NotAllowed,
    "CUSTOMER_UNAUTHORIZED": NotAllowed,
}
# Messages of a database or server that answers, but has another version.
_OTHER_DATABASE = re.compile(
    r"out-of-date database schema|Can't locate revision|no such (table|column)|"
    r"(relation|column|table) .* does not exist"
)
# A record whose key exists: the server answers, and the fault is in what it was given.
_SAME_KEY = re.compile(r"UNIQUE constraint failed|duplicate key value|IntegrityError")
_OTHER_SERVER = re.compile(r"failed with error code (404|405|501)|not a valid JSON|JSONDecodeError")
# A store or a server that answers, and refuses for lack of a right.
_FORBIDDEN = re.compile(r"\((AccessDenied|AllAccessDisabled|403)\)|failed with error code 403")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Said by a database or a store whose disk takes no more; MLflow passes the words on.
_UNWRITABLE = re.compile(
    r"database or disk is full|disk I/O error|No space left on device|Disk quota exceeded|"
    r"File too large|readonly database|unable to open database file|StorageFull|QuotaExceeded",
    re.IGNORECASE,
)
_BELOW = ("mlflow", "sqlalchemy", "sqlite3", "psycopg", "boto3", "botocore", "requests", "urllib3")


@contextmanager
def speaking() -> Iterator[None]:
    """Translate errors of MLflow; other errors are raised as they are.

    Raises:
        NotFound, Conflict, InvalidInput, NotAllowed: MLflow refused.
        WriteFailed: a disk is full, or a file cannot be written.
        ZooUnreachable: there was no answer.
    """
    try:
        yield
    except ManybeamError:
        raise
    except Exception as error:
        full = _UNWRITABLE.search(str(error))
        if full or (isinstance(error, OSError) and error.errno in _FULL):
            raise _unwritable(full[0] if full else str(error)) from error
        answer = _ANSWERS.get(getattr(error, "error_code", ""))
        if answer is not None:
            raise answer(
                f"the zoo refused: {_first_line(error)}",
                "MLflow gave this reason",
                "manybeam doctor checks the zoo",
            ) from error
        if _SAME_KEY.search(str(error)):
            raise Conflict(
                f"the zoo has such a record already: {_first_line(error)}",
                "another process wrote it first, or the same scores were given twice",
                "try again; if it is refused again, report this message",
            ) from error
        if _FORBIDDEN.search(str(error)):
            raise NotAllowed(
                f"access to the zoo is denied: {_first_line(error)}",
                "the MLflow server or the artifact store answered, and the right is missing",
                "ask its administrator for the right to list, read and write there; Manybeam uses "
                "the key in MANYBEAM_S3_ACCESS_KEY for s3://",
            ) from error
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
            f"this version of MLflow cannot use the database of the zoo: {line}",
            "another version of MLflow made it, or its migration was interrupted",
            "back it up, then run mlflow db upgrade URL, with the MLflow that Manybeam installs",
        )
    if _OTHER_SERVER.search(line):
        return ZooUnreachable(
            f"the server is no MLflow server, or another version of it: {line}",
            "Manybeam needs the LoggedModels of MLflow 3",
            "set MANYBEAM_TRACKING_URI to such a server; manybeam doctor checks it",
        )
    url = settings().tracking_uri or settings().s3_endpoint
    return ZooUnreachable(
        f"the zoo does not answer: {_first_line(error)}",
        "MLflow, its database and its artifact store must run",
        unreached_hint(url, str(error), "run manybeam doctor; check MANYBEAM_TRACKING_URI"),
    )


def _unwritable(said: str) -> WriteFailed:
    return WriteFailed(
        f"the zoo cannot be written: {said}",
        "its database and its weights need a disk with free space; nothing was registered",
        "free space on the disk of MANYBEAM_HOME, or of the MLflow server; then run again",
    )
