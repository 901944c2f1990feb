"""An ensemble as one ONNX graph: a tile as networks see it in, mean and spread maps out.

Axis letters: m member, n tile, c kind of atom or channel, y, x.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam.errors import InvalidInput, MissingPackage, WorkFailed
from manybeam.spec.recipe import TileSpec

if TYPE_CHECKING:
    import torch

    from manybeam.learn.nets.member import Member

OPSET = 18
TOLERANCE = 1e-4  # in probability, between this graph and the networks it was made of
INPUT, MEAN, SPREAD, KINDS = "frame", "mean", "spread", "kinds"
LEAST_PX = 32  # what the smallest tile is in prediction, too
MOST_PX = 4096

Map = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """How every member of one graph sees a frame.

    Attributes:
        tiles: pixel size, normalisation and elements they share.
        multiple: what the sides of a tile are multiples of, in pixels.
        least: the smallest side, in pixels.
        outputs: names of the maps, in order.
    """

    tiles: TileSpec
    multiple: int
    least: int
    outputs: tuple[str, ...]


def require(*packages: str) -> None:
    """Refuse to go on without the packages of an exchange.

    Raises:
        MissingPackage: one is not installed; the hint names the pip line.
    """
    missing = [package for package in packages if not _is_there(package)]
    if missing:
        raise MissingPackage(
            f"{', '.join(missing)} is not installed",
            "ONNX graphs and bioimage.io packages are made with it",
            "pip install 'manybeam[exchange]'",
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a dotted name, the package around it
        return False


def view_of(members: Sequence["Member"]) -> View:
    """Return how these members see a frame, if they all see it alike.

    Raises:
        InvalidInput: they differ in pixel size, normalisation or kinds of atom.
    """
    from manybeam.learn.nets.networks import side_multiple

    seen = {
        (one.pixel_size_pm, one.normalise, one.local_nm * (one.normalise == "local"), one.elements)
        for one in (member.recipe.tiles for member in members)
    }
    if len(seen) > 1:
        sizes = ", ".join(f"{size:g} pm {how}" for size, how, *_ in sorted(seen))
        raise InvalidInput(
            f"these members see a frame in {len(seen)} ways: {sizes}",
            "one graph has one input: one pixel size, one normalisation, the same elements",
            "export a single member as name@version/07, or --format safetensors",
        )
    multiple = math.lcm(*(side_multiple(member.recipe.network) for member in members))
    spread = (SPREAD,) if len(members) > 1 else ()
    kinds = (KINDS,) if members[0].recipe.network.classes > 1 else ()
    return View(
        members[0].recipe.tiles,
        multiple,
        max(2 * multiple, -(-LEAST_PX // multiple) * multiple),
        (MEAN, *spread, *kinds),
    )


def write_graph(members: Sequence["Member"], path: Path) -> View:
    """Write an ensemble as one ONNX file that answers as its networks do, and return its view.

    Input `frame`, float32 (n, 1, y, x): tiles at the members' pixel size, normalised; any number
    of any sides that are multiples of the view's. Outputs: `mean`, the mean over members of the
    probability of an atom; from several members `spread`, its standard deviation over them (n - 1
    divisor); from members that tell kinds of atom apart `kinds`, (n, c, y, x), the mean probability
    of each.

    Raises:
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
        InvalidInput: the members do not see a frame alike.
        WorkFailed: a network cannot be written so, or the graph answers otherwise than it.
    """
    require("onnx", "onnxscript", "onnxruntime")
    import torch

    from manybeam.learn.nets.tiled import prepare

    view, device = view_of(members), torch.device("cpu")
    ensemble = _together([prepare(member.network(), device) for member in members], view)
    with _quiet():
        try:
            program = torch.onnx.export(
                ensemble,
                (torch.rand(2, 1, view.least + view.multiple, view.least + 2 * view.multiple),),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={INPUT: _sides(view)},
                input_names=[INPUT],
                output_names=list(view.outputs),
                verbose=False,
            )
            program.save(path, external_data=False)  # type: ignore[union-attr]  # dynamo makes one
        except Exception as error:  # torch's exporter has errors of a dozen kinds
            raise _cannot(members, error) from error
        _check(ensemble, path, view)
    return view


def run_graph(path: Path, input_ncyx: Map) -> dict[str, Map]:
    """Return what an ONNX file says of tiles, by name of the output."""
    require("onnxruntime")
    import onnxruntime  # type: ignore[import-untyped]  # published without types

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: input_ncyx}), strict=True))


def _together(networks: Sequence["torch.nn.Module"], view: View) -> "torch.nn.Module":
    """Return one network of all: its outputs are what `Ensemble.predict` makes of the maps."""
    import torch
    from torch import Tensor, nn

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(networks)

        def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
            prob_mncyx = torch.stack([network(frame).sigmoid() for network in self.members])
            prob_mn1yx = prob_mncyx.amax(dim=2, keepdim=True)
            mean = prob_mn1yx.mean(dim=0)
            found = {MEAN: mean, KINDS: prob_mncyx.mean(dim=0)}
            if SPREAD in view.outputs:
                rest = (prob_mn1yx - mean).square().sum(dim=0)
                found[SPREAD] = (rest / (len(self.members) - 1)).sqrt()
            return tuple(found[name] for name in view.outputs)

    return Together().eval()


def _sides(view: View) -> dict[int, Any]:
    """Return the axes of the input that may have any length, and which."""
    from torch.export import Dim

    least, most = view.least // view.multiple, MOST_PX // view.multiple
    rows, columns = (Dim(f"{axis}_tiles", min=least, max=most) for axis in "yx")
    return {0: Dim("n", min=1, max=256), 2: view.multiple * rows, 3: view.multiple * columns}


def _check(ensemble: "torch.nn.Module", path: Path, view: View) -> None:
    """Refuse a graph that is not valid, or answers otherwise than the networks at some size."""
    import onnx
    import torch

    onnx.checker.check_model(onnx.load(path), full_check=True)
    least, step = view.least, view.multiple
    for shape in ((1, 1, least, least), (3, 1, least + step, least + 3 * step)):
        input_ncyx = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = [one.numpy() for one in ensemble(torch.from_numpy(input_ncyx))]
        found = run_graph(path, input_ncyx)
        far = max(
            float(np.abs(found[name] - one).max())
            for name, one in zip(view.outputs, expected, strict=True)
        )
        if not far <= TOLERANCE:
            raise WorkFailed(
                f"the ONNX graph differs from its networks by {far:.2g} at {shape[2:]} px",
                f"at most {TOLERANCE:g} in probability",
                "export --format safetensors, and tell which torch and onnx are installed",
            )


def _cannot(members: Sequence["Member"], error: Exception) -> WorkFailed:
    names = ", ".join(sorted({member.recipe.network.name for member in members}))
    return WorkFailed(
        f"the network {names} cannot be written as ONNX: {str(error).strip().splitlines()[0]}",
        "some networks do what ONNX has no word for at every size",
        "export --format safetensors",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter says about itself from who asked for an export."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
