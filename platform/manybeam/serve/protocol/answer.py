"""An answer in the form of the protocol: JSON, and the bytes of tensors behind it."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from manybeam.serve import wire
from manybeam.serve.predict import WireAnswer
from manybeam.serve.protocol.request import JSON_LENGTH, InferRequest
from manybeam.serve.protocol.tensors import DTYPES, OUTPUTS


def write_answer(
    asked: InferRequest, model: str, answer: WireAnswer, meta: Mapping[str, Any]
) -> Response:
    """Return an answer; unknown spreads are NaN in bytes and null in JSON.

    Args:
        asked: what was asked.
        model: its name, as the caller says it.
        answer: the arrays.
        meta: all facts of the answer.
    """
    outputs, pieces = [], []
    for name, is_binary in asked.outputs.items():
        form, key = OUTPUTS[name]
        array = _array(answer.arrays, key).astype(DTYPES[form.datatype])
        row: dict[str, Any] = {"name": name, "datatype": form.datatype, "shape": array.shape}
        if is_binary:
            pieces.append(array.tobytes())
            row["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            row["data"] = _numbers(array)
        outputs.append(row)
    version = "" if meta["version"] is None else str(meta["version"])
    head = {"model_name": model, "model_version": version, "parameters": _facts(meta)}
    head |= {"id": asked.id} if asked.id else {}
    text = json.dumps({**head, "outputs": outputs}, allow_nan=False).encode()
    if not pieces:
        return Response(text, media_type=wire.JSON)
    return Response(b"".join([text, *pieces]), 200, {JSON_LENGTH: str(len(text))}, wire.RAW)


def _array(arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    """Return an array of the answer; all atoms of a frame that is no stack are of frame 0."""
    found = arrays.get(key)
    return np.zeros(len(arrays["atoms"]), np.int32) if found is None else found


def _numbers(array: NDArray[Any]) -> list[Any]:
    values: list[Any] = array.reshape(-1).tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in values]
    return values


def _facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an answer as single values, and all of them as one text of JSON."""
    predicted = meta["predicted_f1"] or {}
    values = {
        "ref": meta["ref"],
        "members": ",".join(f"{member:02d}" for member in meta["members"]),
        "verdict": meta["verdict"],
        "drift_score": meta["drift"]["score"],
        "drift_flag": meta["drift"]["flag"],
        "predicted_f1": predicted.get("f1"),
        "predicted_f1_low": predicted.get("low"),
        "predicted_f1_high": predicted.get("high"),
        "pixel_size_pm": meta["pixel_size_pm"],
        "frame_id": meta["frame_id"] or None,
        "meta": json.dumps(meta, allow_nan=False),
    }
    return {name: value for name, value in values.items() if value is not None}
