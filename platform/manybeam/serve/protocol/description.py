"""What the protocol says of the service and of each model."""

from collections.abc import Mapping, Sequence
from typing import Any

from manybeam import __version__
from manybeam.errors import UnknownRef
from manybeam.predictor.answer import AUTO
from manybeam.serve.protocol.tensors import INPUTS, OUTPUTS, TensorForm

PLATFORM = "manybeam"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
SERVER = {"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS}

Row = Mapping[str, Any]


def ref_of(model: str, version: str) -> str:
    """Return the REF of a model and its version; without a version, the one that serves.

    Raises:
        UnknownRef: the version is no number, or the model has none.

    Example:
        >>> ref_of("graphene", "3")
        'graphene@3'
    """
    if not version:
        return model
    is_number = version.isascii() and version.isdigit()
    if not is_number or len(version) > 9 or model == AUTO or "@" in model:
        raise UnknownRef(
            f"no version {version[:40]!r} of {model[:80]!r}",
            f"versions are numbers, and {AUTO} has none",
            "leave the version out, or POST /v2/repository/index for those in memory",
        )
    return f"{model}@{version}"


def metadata(model: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the metadata of a model; `versions` are those in memory.

    Args:
        model: its name.
        rows: of `Service.listing`.
    """
    name = model.partition("@")[0]
    return {
        "name": model,
        "versions": sorted({str(row["version"]) for row in rows if row["name"] == name}),
        "platform": PLATFORM,
        "inputs": [_form(one) for one in INPUTS],
        "outputs": [_form(one) for one, _ in OUTPUTS.values()],
    }


def config(model: str) -> dict[str, Any]:
    """Return the configuration of a model, as clients of Triton read it."""
    return {
        "name": model,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": [_config(one) | {"optional": one.is_optional} for one in INPUTS],
        "output": [_config(one) for one, _ in OUTPUTS.values()],
    }


def index(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the models in memory, and `auto`."""
    found = [{"name": row["name"], "version": str(row["version"])} for row in rows]
    return [{**one, "state": "READY", "reason": ""} for one in ({"name": AUTO}, *found)]


def _form(one: TensorForm) -> dict[str, Any]:
    return {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}


def _config(one: TensorForm) -> dict[str, Any]:
    return {"name": one.name, "data_type": f"TYPE_{one.datatype}", "dims": list(one.shape)}
