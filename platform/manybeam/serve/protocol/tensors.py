"""The tensors of the protocol: their names, types and values.

Values come as numbers in JSON, or as bytes behind it (the binary tensor data extension): little
endian, in C order.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.errors import InvalidInput, MalformedRequest

DTYPES = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
SIZES = ("FP32", "FP64")  # of a pixel size


@dataclass(frozen=True)
class TensorForm:
    """What a model takes or gives: -1 is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False


FRAME = TensorForm("FRAME", "FP32", (-1, -1))
PIXEL_SIZE = TensorForm("PIXEL_SIZE_PM", "FP32", (1,), is_optional=True)
INPUTS = (FRAME, PIXEL_SIZE)
# Of outputs, the array of the answer. Maps are halved in it, but FP16 has no numbers in JSON.
OUTPUTS = {
    "ATOMS": (TensorForm("ATOMS", "FP32", (-1, 7)), "atoms"),
    "ATOMS_FRAME": (TensorForm("ATOMS_FRAME", "INT32", (-1,)), "atoms_frame"),
    "MEAN": (TensorForm("MEAN", "FP32", (-1, -1)), "mean"),
    "STD": (TensorForm("STD", "FP32", (-1, -1)), "std"),
}
MAPS = ("MEAN", "STD")


@dataclass(frozen=True, eq=False)
class SentTensor:
    """A tensor of a request, as it came.

    Attributes:
        name: of the tensor.
        datatype: one of `DTYPES`.
        shape: as stated; nothing was allocated for it.
        values: bytes, or numbers of JSON in lists.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: memoryview | list[Any]

    def array(self) -> NDArray[Any]:
        """Return the values as an array.

        Raises:
            InvalidInput: the datatype is not known, or the values are not of it.
            MalformedRequest: there are more or fewer values than the shape says.
        """
        if self.datatype not in DTYPES:
            raise InvalidInput(
                f"{self.name}: datatype {self.datatype[:20]!r} is not that of a frame",
                f"allowed: {', '.join(DTYPES)}",
                "send the numbers of the detector; complex data as their modulus",
            )
        if min(self.shape, default=0) < 0:
            raise InvalidInput(
                f"{self.name}: shape {_short(self.shape)} has a negative length",
                "-1 is for descriptions only",
                "give the shape of the array",
            )
        dtype = np.dtype(DTYPES[self.datatype])
        if isinstance(self.values, memoryview):
            self._check_count(len(self.values), math.prod(self.shape) * dtype.itemsize, "bytes")
            found = np.frombuffer(self.values, dtype).reshape(self.shape)
            # Where the bytes begin depends on the length of the JSON; networks need whole words.
            return np.require(found, requirements="A")
        return self._of_numbers(dtype)

    def as_bytes(self) -> "SentTensor":
        """Return the tensor with its values as bytes: lists of numbers take twenty times the room.

        Raises:
            ManybeamError: as `array` raises.
        """
        if isinstance(self.values, memoryview):
            return self
        return replace(self, values=memoryview(self.array().tobytes()))

    def _of_numbers(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        try:
            # As objects: as one type, all texts would take the room of the longest.
            objects = np.array(self.values, object)
        except ValueError as error:
            raise self._odd("lists of unequal length, or too deep") from error
        if not {*map(type, objects.ravel())} <= {bool, int, float}:
            raise self._odd("not only numbers, or lists of unequal length, or too deep")
        found = np.array(objects.tolist())
        if found.size and found.dtype.kind not in "biuf":
            raise self._odd("numbers that are too large")
        self._check_count(found.size, math.prod(self.shape), "values")
        if found.ndim != 1 and found.shape != self.shape:
            raise self._odd(f"in lists of shape {_short(found.shape)}")
        if dtype.kind in "iu" and found.size:
            limits = np.iinfo(dtype)
            if found.dtype.kind == "f" or found.min() < limits.min or found.max() > limits.max:
                raise self._odd(f"not all from {limits.min} to {limits.max}, without a point")
        if dtype.kind == "b" and found.size and not np.isin(found, (0, 1)).all():
            raise self._odd("not all true or false")
        with np.errstate(over="ignore"):
            return found.astype(dtype).reshape(self.shape)

    def _check_count(self, found: int, wanted: int, what: str) -> None:
        if found != wanted:
            raise MalformedRequest(
                f"{self.name}: {found} {what} came",
                f"shape {_short(self.shape)} of {self.datatype} is {str(wanted)[:30]}",
                "the tensor is cut short, or its stated shape or datatype is wrong",
            )

    def _odd(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"{self.name}: its data are {what}",
            f"{self.datatype} numbers of shape {_short(self.shape)}, in one list or nested",
            "send them as binary data",
        )


def pixel_size_text(tensor: SentTensor) -> str:
    """Return the number of PIXEL_SIZE_PM as the query of a request would say it.

    That of FP32 is the shortest decimal that it stands for: 7.8, not 7.800000190734863.

    Raises:
        InvalidInput: it is not one number.
    """
    if tensor.datatype not in SIZES or math.prod(tensor.shape) != 1:
        raise InvalidInput(
            f"{tensor.name}: {tensor.datatype[:20]} of shape {_short(tensor.shape)}",
            f"one number of {' or '.join(SIZES)}, of shape [1]",
            "give the edge of a pixel in picometres (a 1024 px frame 8 nm wide has 7.8)",
        )
    return str(tensor.array().reshape(-1)[0])


def _short(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) <= 80 else text[:80] + "...]"
