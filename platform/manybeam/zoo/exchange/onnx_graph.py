"""An ensemble as one ONNX graph. Its input is a normalised tile, its outputs are maps.

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
TOLERANCE = 1e-4  # in probability, between the graph and the networks
INPUT, MEAN, SPREAD, KINDS = "frame", "mean", "spread", "kinds"
LEAST_PX = 32  # smallest tile, as in prediction
MOST_PX = 4096

Map = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """The input that all members of one graph expect.

    Attributes:
        tiles: their common pixel size, normalisation and elements.
        multiple: the sides of a tile are multiples of this, in pixels.
        least: the smallest side, in pixels.
        outputs: names of the maps, in order.
    """

    tiles: TileSpec
    multiple: int
    least: int
    outputs: tuple[str, ...]


def require(*packages: str) -> None:
    """Check that Python packages for the exchange are installed.

    Raises:
        MissingPackage: one is not installed; the hint gives the pip command.
    """
    missing = [package for package in packages if not _is_there(package)]
    if missing:
        raise MissingPackage(
            f"{', '.join(missing)} is not installed",
            "it is needed for ONNX graphs and bioimage.io packages",
            "pip install 'manybeam[exchange]'",
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a dotted name, the package around it
        return False


def view_of(members: Sequence["Member"]) -> View:
    """Return the input that these members expect, if it is the same for all.

    Raises:
        InvalidInput: they differ in pixel size, normalisation or kinds of atom.
    """
    from manybeam.learn.nets.shapes import side_multiple

    seen = {
        (one.pixel_size_pm, one.normalise, one.local_nm * (one.normalise == "local"), one.elements)
        for one in (member.recipe.tiles for member in members)
    }
    if len(seen) > 1:
        sizes = ", ".join(f"{size:g} pm {how}" for size, how, *_ in sorted(seen))
        raise InvalidInput(
            f"these members expect {len(seen)} different inputs: {sizes}",
            "one graph has one pixel size, one normalisation and the same elements",
            "export a single member as name@version/07, or use --format safetensors",
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
    """Write an ensemble as one ONNX file with the same answers, and return its view.

    Input `frame`, float32 (n, 1, y, x): normalised tiles with the pixel size of the members; any
    number of tiles, with sides that are multiples of `View.multiple`. Outputs: `mean`, the mean
    over members of the probability of an atom; for several members `spread`, its standard
    deviation over members (n - 1 divisor); for several kinds of atom `kinds`, (n, c, y, x), the
    mean probability of each kind.

    Raises:
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
        InvalidInput: the members expect different inputs.
        WorkFailed: a network cannot be written as ONNX, or the graph gives other answers.
    """
    require("onnx", "onnxscript", "onnxruntime")
    import torch

    from manybeam.learn.nets.inference.torch_network import prepare

    view, device = view_of(members), torch.device("cpu")
    networks = [_out_of_place(prepare(member.network(), device)) for member in members]
    ensemble = _together(networks, view)
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
        except Exception as error:  # the exporter of torch raises errors of many kinds
            raise _cannot(members, error) from error
        _check(ensemble, path, view)
    return view


def run_graph(path: Path, input_ncyx: Map) -> dict[str, Map]:
    """Return the outputs of an ONNX file for tiles, by name."""
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


def _out_of_place(network: "torch.nn.Module") -> "torch.nn.Module":
    """Return the network, whose activations overwrite nothing: the exporter takes those apart."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # a switch, not a tensor
    return network


def _together(networks: Sequence["torch.nn.Module"], view: View) -> "torch.nn.Module":
    """Return one network of all members, with the same outputs as `Ensemble.predict`."""
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
    """Return the axes of the input with variable length, and their lengths."""
    from torch.export import Dim

    least, most = view.least // view.multiple, MOST_PX // view.multiple
    rows, columns = (Dim(f"{axis}_tiles", min=least, max=most) for axis in "yx")
    return {0: Dim("n", min=1, max=256), 2: view.multiple * rows, 3: view.multiple * columns}


def _check(ensemble: "torch.nn.Module", path: Path, view: View) -> None:
    """Refuse a graph that is not valid, or that differs from the networks at some size."""
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
                "use --format safetensors, and report the versions of torch and onnx",
            )


def _cannot(members: Sequence["Member"], error: Exception) -> WorkFailed:
    names = ", ".join(sorted({member.recipe.network.name for member in members}))
    return WorkFailed(
        f"the network {names} cannot be written as ONNX: {str(error).strip().splitlines()[0]}",
        "some networks use operations that ONNX does not have for variable sizes",
        "use --format safetensors",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages of the exporter of torch."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
