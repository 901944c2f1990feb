"""Checks of a job before its first step: whatever can be refused is refused within seconds.

A training takes minutes to days. A wrong name, a network that cannot be built, a full disk or a
store without the right to write must not be noticed at its end.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from manybeam.errors import InvalidSpec, ManybeamError
from manybeam.jobs.test_sets import check_labelled, plan_blocks
from manybeam.spec.files import Library
from manybeam.spec.job import Job, Measure
from manybeam.spec.recipe import Network, Recipe

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo

SIMULATE = "simulate:"
_NUMBER_BYTES = 4  # of a weight
_COPIES = 2  # of the weights of a member: in the run of the training, and in the zoo


def check_training(job: Job, library: Library, zoo: "Zoo") -> None:
    """Refuse a training that would fail later: recipe, frames, conditions, zoo and disk.

    Raises:
        InvalidSpec: a network of the recipe cannot be built, or its strategy cannot be trained.
        NotFound: a recipe, policy, condition or FrameSet does not exist.
        InvalidInput: frames have no marked atoms, or no pixel size; or a name is not allowed.
        WriteFailed, NotAllowed, Unreachable: the result could not be registered.
    """
    byte_count = check_inputs(job, library)
    check_measure(job.measure, library, job.seed)
    zoo.check_writable(job.name, _COPIES * byte_count)


def check_inputs(job: Job, library: Library) -> int:
    """Return the bytes of all weights of a training; refuse a recipe or frames it cannot use.

    Raises:
        InvalidSpec, NotFound, InvalidInput: as `check_training`.
    """
    recipe = library.recipe(job.recipe)
    for name in dict.fromkeys(member.policy for member in recipe.members):
        library.policy(name)
    for url in job.frames:
        if url != SIMULATE:
            check_labelled(url, "trained")
    return check_recipe(recipe)


def check_recipe(recipe: Recipe) -> int:
    """Return the number of bytes of all weights; refuse a recipe that cannot be trained.

    All its mistakes are reported together.
    """
    networks = [recipe.of(member).network for member in recipe.members]
    faults = list(_faults(recipe, dict.fromkeys(networks)))
    if faults:
        raise InvalidSpec(
            "\n".join(error.what for error in faults),
            "; ".join(dict.fromkeys(error.why for error in faults)),
            "; ".join(dict.fromkeys(error.hint for error in faults)),
        )
    return sum(_weight_bytes(network) for network in networks)


def check_measure(measure: Measure, library: Library, seed: int = 0) -> None:
    """Refuse conditions and frames on which nothing can be measured; none at all are allowed.

    Raises:
        UnknownCondition, UnknownFrameSet: one of them does not exist.
        InvalidInput: a FrameSet has no marked atoms.
        MissingPixelSize: a frame of it has no pixel size.
    """
    if is_asked(measure):
        plan_blocks(measure, library, seed)


def is_asked(measure: Measure) -> bool:
    """Return whether a job names something to measure on."""
    return bool(measure.conditions or measure.frames)


def _faults(recipe: Recipe, networks: Iterable[Network]) -> Iterator[ManybeamError]:
    if recipe.strategy != "scratch":
        yield InvalidSpec(
            f"strategy: {recipe.strategy!r} of the recipe {recipe.id!r} cannot be trained yet",
            "allowed: 'scratch'",
            "set strategy: scratch in the recipe",
        )
    for network in networks:
        try:
            _weight_bytes(network)
        except ManybeamError as error:
            yield error


def _weight_bytes(network: Network) -> int:
    """Return the bytes of a network's weights, if possible from a network that takes no memory.

    Some classes of MONAI compute with their first weights, which a network without memory has not.
    They are built on the CPU before they are refused.
    """
    import torch

    from manybeam.learn.nets.networks import build

    try:
        try:
            with torch.device("meta"):
                weights = list(build(network).state_dict().values())
        except (NotImplementedError, RuntimeError):
            weights = list(build(network).state_dict().values())
    except (ImportError, ManybeamError):
        raise
    except Exception as error:  # whatever a class of MONAI raises for numbers it cannot use
        raise InvalidSpec(
            f"network: {network.name!r} cannot be built with these numbers: {error}",
            f"filters {network.filters}, levels {network.levels}, classes {network.classes}",
            "change these fields of the recipe, or use 'unet'",
        ) from error
    return int(_NUMBER_BYTES * sum(weight.numel() for weight in weights))
