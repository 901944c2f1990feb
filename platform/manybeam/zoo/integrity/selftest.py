"""Self-tests: the answer of every member to one tile, stored with its version.

A member must give the same answer later, on other machines and with other versions of torch. Axis
letters: n tile, c class, y, x.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from manybeam.errors import Corrupt

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member

SELF_TEST_FILE = "selftest.safetensors"
SIDE_PX = 64  # a multiple of 2^5, which every network accepts
TOLERANCE = 1e-4  # in probability; other hardware gives 1e-6, wrong weights give 1e-1
_SEED = 20211107


@dataclass(frozen=True)
class SelfTest:
    """Whether one member gives the same answer as at registration.

    Attributes:
        member: index of the member.
        difference: largest difference of a probability; NaN if shapes differ or no answer is
            stored.
        reproduces: whether the difference is within the tolerance.
    """

    member: int
    difference: float
    reproduces: bool


def write_self_test(members: Sequence["Member"]) -> bytes:
    """Return the answers of members to a fixed tile, as the bytes of safetensors."""
    from safetensors.numpy import save

    tile_ncyx = _tile()
    answers = {_name(member.index): _answer(member, tile_ncyx) for member in members}
    return save({"tile": tile_ncyx, **answers})


def run_self_test(members: Sequence["Member"], kept: bytes) -> list[SelfTest]:
    """Return, for each member, the difference of its answer from the stored answer.

    Raises:
        Corrupt: the bytes hold no self-test.
    """
    tensors = _read(kept)
    return [_compared(member, tensors) for member in members]


def _compared(member: "Member", tensors: Mapping[str, np.ndarray]) -> SelfTest:
    expected_cyx = tensors.get(_name(member.index))
    found_cyx = _answer(member, tensors["tile"])
    if expected_cyx is None or expected_cyx.shape != found_cyx.shape:
        return SelfTest(member.index, float("nan"), reproduces=False)
    difference = float(np.abs(found_cyx - expected_cyx).max())
    return SelfTest(member.index, difference, reproduces=difference <= TOLERANCE)


def _answer(member: "Member", tile_ncyx: np.ndarray) -> np.ndarray:
    """Return the probabilities of a member for one tile, float32 (c, y, x)."""
    import torch

    with torch.inference_mode():
        probability_ncyx = member.network()(torch.from_numpy(tile_ncyx)).sigmoid()
    return np.ascontiguousarray(probability_ncyx[0].float().numpy())


def _tile() -> np.ndarray:
    """Return one tile as input of a network, (1, 1, y, x): noise around 0 with bright spots."""
    rng = np.random.default_rng(_SEED)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    tile_yx = rng.normal(0, 0.5, (SIDE_PX, SIDE_PX))
    for at_y, at_x in rng.uniform(4, SIDE_PX - 4, (12, 2)):
        tile_yx += 3 * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 8)
    return np.ascontiguousarray(tile_yx[None, None], dtype=np.float32)


def _name(index: int) -> str:
    return f"member.{index:02d}"


def _read(kept: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, np.ndarray] = load(kept)
    except SafetensorError as error:
        raise _unreadable(str(error)) from error
    if "tile" not in tensors:
        raise _unreadable("it holds no tile")
    return tensors


def _unreadable(why: str) -> Corrupt:
    return Corrupt(
        f"the self-test of a version cannot be read: {why}",
        "it is written when the version is registered",
        "restore the store from its backup",
    )
