"""An ensemble as a bioimage.io package: a .zip for other programs and for other zoos.

The format needs the ONNX graph, test tensors, model card and cover. Members, recipes and scores
are attachments. Axis letters: n tile, c channel, y, x.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manybeam import __version__
from manybeam.errors import InvalidInput, WorkFailed
from manybeam.spec.elements import symbol_of
from manybeam.spec.imaging import Condition
from manybeam.zoo.exchange.onnx_graph import (
    INPUT,
    KINDS,
    MEAN,
    OPSET,
    SPREAD,
    TOLERANCE,
    View,
    require,
    run_graph,
)

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ModelDescr

    from manybeam.learn.nets.member import Member
    from manybeam.zoo.records import Record

RDF_FILE = "rdf.yaml"
GRAPH_FILE = "ensemble.onnx"
README_FILE = "README.md"
COVER_FILE = "cover.png"
TEST_PX = 128  # side of the test tile, or the next multiple that the networks accept
SHARE = 0.005  # of the largest value of a map: the format allows tolerances up to 0.01 of it
EPSILON = 1e-12  # our normalisation has no epsilon; the format needs a number > 0
_METHOD = (
    "Ghosh et al., npj Comput. Mater. 7, 100 (2021), Ensemble learning-iterative training",
    "10.1038/s41524-021-00569-7",
)
_SAYS = {
    MEAN: "mean over members of the probability of an atom",
    SPREAD: "standard deviation of that probability over members (n - 1): their disagreement",
    KINDS: "mean over members of the probability of each kind of atom",
}

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Credit:
    """Authors, licence and citations of an ensemble.

    Attributes:
        authors: names of the authors.
        licence: SPDX identifier of the licence of weights and card; "" if none was chosen.
        cite: texts and DOIs of citations; if left out, the citation of the method.
        tags: keywords, in addition to the default ones.
    """

    authors: tuple[str, ...] = ("unnamed",)
    licence: str = ""
    cite: tuple[tuple[str, str], ...] = (_METHOD,)
    tags: tuple[str, ...] = ()


def write_package(
    folder: Path,
    record: "Record",
    members: Sequence["Member"],
    view: View,
    credit: Credit,
    imaging: Condition,
) -> Path:
    """Make a package from a folder with graph, card and attachments; return the .zip.

    Args:
        folder: folder with `ensemble.onnx`, `README.md` and all files to attach, nothing else.
        record: the version.
        members: its members.
        view: the input that the members expect.
        credit: authors, licence and citations.
        imaging: condition of the simulated test frame.

    Raises:
        MissingPackage: bioimageio.spec is not installed.
        InvalidInput: the format refuses a name, licence or DOI.
        WorkFailed: the validator of the format refuses the package, or the graph fails the test.
    """
    require("bioimageio.spec")
    attached = sorted(
        path.name for path in folder.iterdir() if path.name not in (GRAPH_FILE, README_FILE)
    )
    frame_yx = sample_frame(imaging, view)
    outputs = _write_tests(folder, frame_yx, view)
    with (folder / README_FILE).open("a", encoding="utf-8") as card:
        card.write(f"\n{validation_section(view)}")
    _draw_cover(folder / COVER_FILE, frame_yx, outputs[MEAN][0, 0])
    least = min(float(output_ncyx.max()) for output_ncyx in outputs.values())
    config = _config(record, view, min(TOLERANCE, SHARE * least))
    model = _describe(folder, _PackageTexts(record, members, view, credit), attached, config)
    return _package(folder, model)


def validation_section(view: View) -> str:
    """Return the section about validation that the format requires, as Markdown."""
    return (
        "## Validation\n\n"
        "The tables above show the measured scores of each member and of the ensemble, on frames "
        f"of known truth. `{GRAPH_FILE}` gives the same probabilities as the networks, within "
        f"{TOLERANCE:g}; this was checked at three sizes when this package was written. "
        f"`{_test_file(INPUT)}` and the other test files allow the same check again. The test "
        f"frame is simulated, with {view.tiles.pixel_size_pm:g} pm per pixel. The networks need "
        "this pixel size, so rescale frames of other pixel sizes first.\n"
    )


def sample_frame(imaging: Condition, view: View) -> Map:
    """Return one simulated frame with the pixel size and the sides that the networks need."""
    from manybeam.data.simulation.simulate import simulate
    from manybeam.data.tiles import rescale

    side = max(-(-TEST_PX // view.multiple) * view.multiple, view.least)
    own_pm = view.tiles.pixel_size_pm
    first = simulate(imaging, 1, seed=1, shape=(64, 64))
    found_pm = float(first.pixel_size_pm[0])
    drawn_px = int(np.ceil(side * own_pm / found_pm)) + 2
    frames = simulate(imaging, 1, seed=1, shape=(drawn_px, drawn_px))
    frame_yx, _ = rescale(frames.frames_nyx[0], float(frames.pixel_size_pm[0]), own_pm)
    return np.ascontiguousarray(frame_yx[:side, :side])


def seen(frame_yx: Map, view: View) -> Map:
    """Return a frame as input of the networks, normalised, (1, 1, y, x)."""
    from manybeam.data.tiles import normalise

    local_px = view.tiles.local_nm * 1000 / view.tiles.pixel_size_pm
    return normalise(frame_yx, view.tiles.normalise, local_px)[None, None]


def _write_tests(folder: Path, frame_yx: Map, view: View) -> dict[str, Map]:
    """Write test tensors and return the outputs of the graph for the frame."""
    is_local = view.tiles.normalise == "local"
    given = seen(frame_yx, view) if is_local else frame_yx[None, None]
    outputs = run_graph(folder / GRAPH_FILE, seen(frame_yx, view))
    np.save(folder / _test_file(INPUT), given)
    for name, output_ncyx in outputs.items():
        np.save(folder / _test_file(name), output_ncyx)
    return outputs


def _test_file(name: str) -> str:
    return f"test_{name}.npy"


def _draw_cover(path: Path, frame_yx: Map, mean_yx: Map) -> None:
    """Draw the test frame beside the probability of an atom, twice as wide as high."""
    from PIL import Image

    low, high = np.percentile(frame_yx, (1, 99))
    scaled_yx = np.clip((frame_yx - low) / max(high - low, EPSILON), 0, 1)
    both_yx = np.concatenate([scaled_yx, np.clip(mean_yx, 0, 1)], axis=1)
    picture = Image.fromarray((both_yx * 255).astype(np.uint8))
    picture.resize((800, 400), Image.Resampling.NEAREST).save(path)


@dataclass(frozen=True)
class _PackageTexts:
    """The inputs of the description."""

    record: "Record"
    members: Sequence["Member"]
    view: View
    credit: Credit


def _describe(
    folder: Path, words: _PackageTexts, attached: Sequence[str], config: Mapping[str, Any]
) -> "ModelDescr":
    from bioimageio.spec.model.v0_5 import ModelDescr
    from pydantic import ValidationError

    file, record, view, credit = _PackageFile(folder), words.record, words.view, words.credit
    content = {
        "format_version": ModelDescr.implemented_format_version,
        "type": "model",
        "name": f"{record.name} version {record.version}",
        "description": _description(record, words.members, view),
        "authors": [{"name": name} for name in credit.authors],
        "cite": [{"text": text, "doi": doi} for text, doi in credit.cite],
        "license": credit.licence or None,
        "tags": [*_TAGS, *credit.tags],
        "version": str(record.version),
        "timestamp": record.created.isoformat(),
        "documentation": file(README_FILE),
        "covers": [file(COVER_FILE)],
        "attachments": [file(name) for name in attached],
        "inputs": [_input(file, view)],
        "outputs": [_output(file, name, view) for name in view.outputs],
        "weights": {"onnx": {**file(GRAPH_FILE), "opset_version": OPSET}},
        "config": config,
    }
    try:
        from bioimageio.spec import ValidationContext

        with ValidationContext(root=folder, perform_io_checks=False):
            return ModelDescr.model_validate(content)
    except ValidationError as error:
        raise _refused(_faults(error)) from error


def check_credit(credit: Credit) -> None:
    """Refuse authors, a licence and citations that the format refuses, before any work.

    Raises:
        MissingPackage: bioimageio.spec is not installed.
        InvalidInput: all faults are listed.
    """
    require("bioimageio.spec")
    from bioimageio.spec.model.v0_5 import Author, CiteEntry, ModelDescr
    from pydantic import TypeAdapter, ValidationError

    kind: Any = ModelDescr.model_fields["license"].annotation
    licence: TypeAdapter[Any] = TypeAdapter(kind)
    checks: list[tuple[str, Callable[[], Any]]] = [
        *((f"author {one!r}", partial(Author.model_validate, {"name": one}))
          for one in credit.authors),
        *((f"citation {doi!r}", partial(CiteEntry.model_validate, {"text": text, "doi": doi}))
          for text, doi in credit.cite),
        (f"licence {credit.licence!r}", partial(licence.validate_python, credit.licence or None)),
    ]  # fmt: skip
    faults = []
    for what, check in checks:
        try:
            check()
        except ValidationError as error:
            is_licence = what.startswith("licence")
            why = "no SPDX identifier" if is_licence else error.errors(include_url=False)[0]["msg"]
            faults.append(f"{what}: {why}")
    if faults:
        raise _refused("; ".join(faults))


def _refused(faults: str) -> InvalidInput:
    return InvalidInput(
        f"the format of bioimage.io refuses this: {faults}",
        "allowed: names, an SPDX licence such as CC-BY-4.0, DOIs as 10.1000/xyz",
        "correct the option listed above",
    )


_TAGS = ("manybeam", "ensemble", "uncertainty", "stem", "electron-microscopy", "atom-detection")


class _PackageFile:
    """Describes a file of the package as the format requires: source and digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> dict[str, str]:
        from manybeam.zoo.exchange.unpack import sha256_of_file

        return {"source": name, "sha256": sha256_of_file(self.folder / name)}


def _faults(error: Any) -> str:
    faults = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults[:5])


def _description(record: "Record", members: Sequence["Member"], view: View) -> str:
    return (
        f"{len(members)} networks that find atoms in frames with pixels of "
        f"{view.tiles.pixel_size_pm:g} pm. Outputs: the mean of their probabilities, and their "
        f"disagreement. Ensemble {record.ref} of a Manybeam zoo."
    )


def _config(record: "Record", view: View, tolerance: float) -> dict[str, Any]:
    """Return the tolerance of the test, and data for which the format has no field."""
    return {
        "bioimageio": {"reproducibility_tolerance": [{"absolute_tolerance": tolerance}]},
        "manybeam": {
            "ensemble": record.name,
            "version": record.version,
            "digest": record.sha256,
            "written_by": f"manybeam {__version__}",
            "tiles": view.tiles.model_dump(mode="json"),
        },
    }


def _input(file: _PackageFile, view: View) -> Mapping[str, Any]:
    size = {"min": view.least, "step": view.multiple}
    scale = {"unit": "picometer", "scale": view.tiles.pixel_size_pm}
    return {
        "id": INPUT,
        "description": _INPUT_SAYS[view.tiles.normalise].format(pm=view.tiles.pixel_size_pm),
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": ["intensity"]},
            *({"type": "space", "id": axis, "size": size, **scale} for axis in "yx"),
        ],
        "test_tensor": file(_test_file(INPUT)),
        "data": {"type": "float32"},
        "preprocessing": _preprocessing(view.tiles.normalise),
    }


_INPUT_SAYS = {
    "frame": "one frame as recorded, rescaled to {pm:g} pm a pixel",
    "range": "one frame as recorded, rescaled to {pm:g} pm a pixel",
    # The format has no such preprocessing.
    "local": "one frame rescaled to {pm:g} pm a pixel, ALREADY normalised by its local mean and "
    "deviation (see the card)",
}


def _preprocessing(how: str) -> list[dict[str, Any]]:
    """Return the preprocessing of a frame in the terms of the format; as `data.tiles.normalise`."""
    from manybeam.data.tiles import CLIP

    float32 = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    if how == "frame":
        return [
            float32,
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"], "eps": EPSILON}},
            {"id": "clip", "kwargs": {"min": CLIP[0], "max": CLIP[1]}},
        ]
    if how == "range":
        return [float32, {"id": "scale_range", "kwargs": {"axes": ["y", "x"], "eps": EPSILON}}]
    return [float32]


def _output(file: _PackageFile, name: str, view: View) -> Mapping[str, Any]:
    scale = {"unit": "picometer", "scale": view.tiles.pixel_size_pm}
    kinds = [symbol_of(number) for number in view.tiles.elements]
    return {
        "id": name,
        "description": _SAYS[name],
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": kinds if name == KINDS else [name]},
            *(
                {
                    "type": "space",
                    "id": axis,
                    "size": {"tensor_id": INPUT, "axis_id": axis},
                    **scale,
                }
                for axis in "yx"
            ),
        ],
        "test_tensor": file(_test_file(name)),
        "data": {"type": "float32", "range": [0, 1]},
    }


# Results of the validator for a good package, without and with a run of the graph.
_PASSED = ("valid-format", "passed")


def _package(folder: Path, model: "ModelDescr") -> Path:
    """Return the .zip of a description, after the validator of the format has accepted it.

    The packer of bioimageio.spec leaves files open, so the .zip is written here.
    """
    import yaml
    from bioimageio.spec import dump_description, load_description

    names = sorted(path.name for path in folder.iterdir())
    described = dump_description(model)
    (folder / RDF_FILE).write_text(
        yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    made = folder / "package.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (RDF_FILE, *names):
            archive.write(folder / name, name)
    with zipfile.ZipFile(made) as archive:  # with a path, the reader would leave the file open
        found = load_description(archive, format_version="latest", perform_io_checks=True)
    summary = found.validation_summary
    if summary.status not in _PASSED:
        faults = [
            f"{'.'.join(map(str, e.loc))}: {e.msg}" for one in summary.details for e in one.errors
        ]
        raise WorkFailed(
            f"the validator of bioimage.io refuses the package: {'; '.join(faults[:5])}",
            f"its result is {summary.status}, not one of {', '.join(_PASSED)}",
            "use --format safetensors instead, and report this error",
        )
    return made
