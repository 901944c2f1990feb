"""zoo.backend.refusals: what MLflow and the packages below it raise becomes one of our errors."""

import errno

import pytest
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from urllib3.exceptions import ConnectTimeoutError

from manybeam.errors import (
    Conflict,
    InvalidInput,
    NotAllowed,
    NotFound,
    UnknownRef,
    WriteFailed,
    ZooUnreachable,
)
from manybeam.zoo.backend.refusals import speaking


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        pytest.param(MlflowException("x", RESOURCE_DOES_NOT_EXIST), NotFound, id="not there"),
        pytest.param(MlflowException("x", RESOURCE_ALREADY_EXISTS), Conflict, id="taken"),
        pytest.param(MlflowException("x", INVALID_PARAMETER_VALUE), InvalidInput, id="bad value"),
        pytest.param(MlflowException("x", INTERNAL_ERROR), ZooUnreachable, id="server fault"),
        pytest.param(MlflowException("x", TEMPORARILY_UNAVAILABLE), ZooUnreachable, id="locked"),
        pytest.param(ConnectTimeoutError("x"), ZooUnreachable, id="timeout"),
        pytest.param(OSError(errno.EACCES, "denied"), ZooUnreachable, id="no access"),
        pytest.param(
            ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject"),
            NotAllowed,
            id="no right to write",
        ),
        pytest.param(
            ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject"),
            NotAllowed,
            id="no right to read",
        ),
        pytest.param(OSError(errno.ENOSPC, "full"), WriteFailed, id="disk full"),
    ],
)
def test_an_error_from_below_is_told_as_ours(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected), speaking():
        raise raised


@pytest.mark.parametrize("raised", [UnknownRef("ours"), ZeroDivisionError("a bug")])
def test_our_own_errors_and_bugs_pass_unchanged(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, speaking():
        raise raised
    assert caught.value is raised
