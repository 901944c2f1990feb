"""Import of `.tar` files of AtomAI as members, without running code in them.

The files are pickles of torch. Only tensors, numbers, texts and lists are read. A saved optimiser
is skipped. Anything else is refused, with its name.

The file contains neither the pixel size nor the meaning of its channels, so the user has to give
them. AtomAI scales a whole stack of frames to 0..1, and before that pads odd sides with zeros. Here
each frame is scaled alone and reflected at its far edges. This is the same for single frames whose
sides are multiples of 8.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.errors import InvalidInput, InvalidSpec, UnreadableFile
from manybeam.zoo.exchange.folder import ImportedPackage, check_fit

if TYPE_CHECKING:
    from torch import Tensor

    from manybeam.learn.nets.member import Member
    from manybeam.learn.nets.shapes import Shape
    from manybeam.spec.recipe import Recipe

POLICY = "atomai"
LEGACY = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # beginning of old torch files that are no .zip
)
_OPTIMISER = re.compile(r"torch\.optim\.\w+\.\w+")
_BLOCKS = {
    "c1": "down.0",
    "c2": "down.1",
    "c3": "down.2",
    "bn": "down.3",
    "c4": "up.0",
    "c5": "up.1",
    "c6": "up.2",
}
_WITH_DROPOUT = ("c3", "bn", "c4")
_IN_BLOCK = re.compile(r"(\w+)\.(?:block|atrous_module)\.(\d+)\.(\w+)")
_ENLARGED = re.compile(r"upsample_block([123])\.conv\.(weight|bias)")


@dataclass(frozen=True)
class AtomAIFrames:
    """Information about the training frames that an AtomAI file does not contain.

    Attributes:
        pixel_size_pm: edge of a pixel, in pm.
        mask_radius_pm: radius of an atom in the masks, in pm.
        elements: atomic number of each channel except the background, if there are several.
    """

    pixel_size_pm: float
    mask_radius_pm: float = 42.0
    elements: tuple[int, ...] = ()


def read_atomai(path: Path, frames: AtomAIFrames | None) -> ImportedPackage:
    """Return the members of an AtomAI `.tar`: those of an ensemble, or one single model.

    Raises:
        UnreadableFile: the file contains more than weights, is cut short, or its weights do not
            fit its network.
        InvalidInput: the pixel size is not given, or the elements of several channels.
        InvalidSpec: the network is not the Unet of AtomAI, or its size is not supported.
    """
    content = _loaded(path)
    shape = _shape(content, path)
    sets = _weight_sets(content.get("weights"), path)
    recipe = _recipe(content, shape, len(sets), path, frames)
    members = [_member(recipe, shape, index, found, path) for index, found in enumerate(sets)]
    settings = {key: value for key, value in content.items() if key not in ("weights", "optimizer")}
    return ImportedPackage(members, origin={"made_by": "atomai", "settings": settings})


class _Unread:
    """Replaces an optimiser; its content is skipped."""

    def __new__(cls, *_: object) -> "_Unread":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _empty(*_: object) -> dict[object, object]:
    """Return an empty mapping instead of the moments of an optimiser."""
    return {}


def _loaded(path: Path) -> dict[str, Any]:
    import torch

    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unknown file can cause any error in the reader of torch
        raise _unreadable(path, _reason(error)) from error
    if not isinstance(content, dict) or content.get("model_type") != "seg":
        raise _unreadable(path, "it is not marked as a segmentation model of AtomAI")
    return content


def _stand_ins(path: Path) -> list[Any]:
    """Return harmless replacements for the parts of an optimiser, by the names in the file."""
    import torch

    if not zipfile.is_zipfile(path):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    optimisers = [(_Unread, name) for name in names if _OPTIMISER.fullmatch(name)]
    if not optimisers:
        return []
    return [*optimisers, (_empty, "collections.defaultdict"), (dict, "builtins.dict")]


def _reason(error: Exception) -> str:
    """Return the reason in an error of torch, without the advice around it."""
    text = str(error)
    named = re.search(r"(?:GLOBAL|global) ([\w.]+)", text)
    if named:
        return f"it would run {named[1]} when it is opened"
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def _recipe(
    content: Mapping[str, Any],
    shape: "Shape",
    count: int,
    path: Path,
    frames: AtomAIFrames | None,
) -> "Recipe":
    from pydantic import ValidationError

    from manybeam.spec.recipe import Recipe

    classes = int(content["nb_classes"]) - shape.has_background
    given = _frames_given(path, frames, classes)
    try:
        return Recipe.model_validate(
            {
                "id": POLICY,
                "title": "Trained by AtomAI",
                "network": {
                    "name": shape.name,
                    "filters": content["nb_filters"],
                    "levels": 4,
                    "classes": classes,
                    "dropout": 0.1 if content["dropout"] else 0.0,
                },
                "tiles": {
                    "pixel_size_pm": given.pixel_size_pm,
                    "mask_radius_pm": given.mask_radius_pm,
                    "normalise": "range",
                    "elements": given.elements,
                },
                "members": [{"seed": index, "policy": POLICY} for index in range(count)],
            }
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise InvalidSpec(
            f"{path.name}: its network does not fit a recipe: {error}",
            "allowed: 2 to 256 filters, 1 to 8 channels, pixels of at most 500 pm",
            "train members on the same frames instead",
        ) from error


def _shape(content: Mapping[str, Any], path: Path) -> "Shape":
    from manybeam.learn.nets.shapes import Shape

    name = content.get("model")
    if name != "Unet":
        raise InvalidSpec(
            f"{path.name}: the network {name!r} of AtomAI cannot be imported",
            "only its 'Unet' can",
            "train members on the same frames instead",
        )
    try:
        flags = [bool(content[key]) for key in ("batch_norm", "with_dilation")]
        first, second, third, deepest = (int(count) for count in content["layers"])
        shape = Shape(
            (first, second, third, deepest),
            str(content["upsampling"]),
            has_norm=flags[0],
            is_dilated=flags[1],
            has_background=int(content["nb_classes"]) > 1,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _unreadable(path, f"it has no description of its network: {error!r}") from error
    if Shape.of(shape.name) != shape:
        raise InvalidSpec(
            f"{path.name}: a Unet with layers {list(shape.layers)} and {shape.enlarging!r} "
            "upsampling cannot be imported",
            "allowed: four blocks of 1 to 9 layers, upsampling 'bilinear' or 'nearest'",
            "train members on the same frames instead",
        )
    return shape


def _frames_given(path: Path, frames: AtomAIFrames | None, kinds: int) -> AtomAIFrames:
    if frames is None:
        raise InvalidInput(
            f"{path.name} does not contain the pixel size of its training",
            "frames are rescaled to this pixel size",
            "give --pixel-size-pm",
        )
    if kinds > 1 and len(frames.elements) != kinds:
        raise InvalidInput(
            f"{path.name} has {kinds} kinds of atom, but {len(frames.elements)} elements are given",
            "the atomic number of each kind is needed, in the order of the channels; the last "
            "channel is the background",
            "give --elements, such as --elements 6,14",
        )
    if kinds == 1 and frames.elements:
        raise InvalidInput(
            f"{path.name} has one kind of atom",
            "elements are needed only for several kinds",
            "remove --elements",
        )
    return frames


def _weight_sets(weights: object, path: Path) -> "list[dict[str, Tensor]]":
    """Return the weights of each member, after a check that they are only named tensors."""
    import torch

    sets = (
        [weights]
        if not isinstance(weights, dict) or "px.weight" in weights
        else [*weights.values()]
    )
    if not sets or not all(
        isinstance(found, dict)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items())
        for found in sets
    ):
        raise _unreadable(path, "its weights are not tensors by name")
    return sets  # type: ignore[return-value]  # just checked


def _member(
    recipe: "Recipe", shape: "Shape", index: int, found: "Mapping[str, Tensor]", path: Path
) -> "Member":
    import torch

    from manybeam.learn.nets.member import Member

    has_dropout = recipe.network.dropout > 0
    named = {_our_name(name, shape, has_dropout=has_dropout): v for name, v in found.items()}
    weights = {**named, "offset": torch.zeros(recipe.network.classes)}
    member = Member(
        index=index,
        seed=index,
        policy=POLICY,
        recipe=recipe,
        weights=weights,
        losses=(),
        wall_s=0.0,
        data_digest="",
    )
    check_fit(member, path.name)  # before memory is used: a stride of 0 could need gigabytes
    for name, tensor in weights.items():
        weights[name] = (
            tensor.float().contiguous() if tensor.is_floating_point() else tensor.clone()
        )
    return member


def _our_name(name: str, shape: "Shape", *, has_dropout: bool) -> str:
    """Return the name of an AtomAI tensor in our network; an unknown name is not changed."""
    if match := _ENLARGED.fullmatch(name):
        return f"narrow.{int(match[1]) - 1}.{match[2]}"
    if name in ("px.weight", "px.bias"):
        return f"last.{name.removeprefix('px.')}"
    match = _IN_BLOCK.fullmatch(name)
    if match is None or match[1] not in _BLOCKS:
        return name
    block, place, what = match[1], int(match[2]), match[3]
    stride = 2 + shape.has_norm + (has_dropout and block in _WITH_DROPOUT)
    layer, part = divmod(place, stride)
    return f"{_BLOCKS[block]}.{'norm' if part else 'conv'}.{layer}.{what}"


def _unreadable(path: Path, why: str) -> UnreadableFile:
    return UnreadableFile(
        f"{path.name} cannot be read as an AtomAI file: {why}",
        "allowed: weights and settings that save_ensemble_metadict or save_model of AtomAI wrote",
        "save it with AtomAI again, or ask its author for the weights as .safetensors",
    )
