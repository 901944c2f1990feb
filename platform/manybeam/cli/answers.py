"""How `manybeam predict` prints answers, and where it writes their files."""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.cli.terminal.output import say
from manybeam.data.disk import write_files
from manybeam.predictor.answer_files import (
    atoms_csv,
    element_counts,
    fill_group,
    frame_name,
    mean_of,
    picture,
    quality_words,
)

if TYPE_CHECKING:
    from manybeam.predictor.answer import Answer

POOR_F1 = 0.5  # an answer below it is warned of, also if other members suit the frame
MOST_NAMED = 3  # frames that a warning names


def lines(answer: "Answer", *, is_verbose: bool) -> Iterator[str]:
    """Yield an answer for a terminal: one line, and the details on more lines if asked for."""
    yield f"{frame_name(answer)}: {_atoms_words(answer)}, {quality_words(answer)}"
    if not is_verbose:
        return
    size_pm, error_pm = answer.frame.pixel_size_pm, answer.frame.pixel_size_error_pm
    if size_pm is not None:
        inferred = f" +- {error_pm:.2g}, inferred" if error_pm is not None else ""
        yield f"  pixel size: {size_pm:.4g} pm{inferred}"
    members = ", ".join(f"{member:02d}" for member in answer.members)
    yield f"  answered by: {answer.ref}, members {members}"
    spread = mean_of(answer.atoms[:, 4:6])
    if spread is not None:
        unit = f" ({spread * size_pm:.2g} pm)" if size_pm else ""
        yield f"  mean spread of positions between members: {spread:.2g} px{unit}"
    if answer.calibration and math.isfinite(answer.calibration.position_pm):
        yield f"  90 % of positions are right to {answer.calibration.position_pm:.2g} pm"
    yield from (f"  - {reason}" for reason in answer.reasons)


def warn(answers: "Sequence[Answer]") -> None:
    """Print a warning that names the frames out of distribution, and one for poor answers."""
    drifted = [one for one in answers if one.is_drifted]
    if drifted:
        say(f"warning: out of distribution: {_names(drifted)}. Do not rely on these atoms")
        for reason in drifted[0].verdict_reasons:
            say(f"why: {reason}")
    poor = [one for one in answers if one not in drifted and _is_poor(one)]
    if poor:
        say(f"warning: a predicted F1 below {POOR_F1:g}: {_names(poor)}")
        say(f"why: {poor[0].why}")
    for first in (drifted or poor)[:1]:
        file = shlex.quote(first.frame.origin)
        say(f"try: manybeam select {file} -e {first.question.ref} --show")


def _names(some: "Sequence[Answer]") -> str:
    """Return the names of the first frames, and how many more there are."""
    names = "; ".join(frame_name(one) for one in some[:MOST_NAMED])
    return names + f" and {len(some) - MOST_NAMED} more" * (len(some) > MOST_NAMED)


def _is_poor(answer: "Answer") -> bool:
    return answer.predicted_f1 is not None and answer.predicted_f1.f1 < POOR_F1


def write_atoms(path: Path | None, answers: "Sequence[Answer]") -> None:
    """Write one CSV of all atoms; positions are also in nm if the pixel size is known."""
    if path is None:
        return
    write_files({path: atoms_csv(answers)})


def write_pictures(folder: Path | None, answers: "Sequence[Answer]") -> None:
    """Write a picture of each answer."""
    if folder is None:
        return
    for number, answer in enumerate(answers):
        frame = answer.frame
        name = f"{number:03d}-{Path(frame.origin).stem}-{frame.index or 0:03d}.png"
        write_files({folder / name: picture(answer)})


def write_zarr(url: str, answers: "Sequence[Answer]") -> None:
    """Write one Zarr group with a sub-group for each frame: frame, mean, std, mi, atoms."""
    if not url:
        return
    import zarr

    from manybeam.cli.terminal.targets import check_empty
    from manybeam.data.store import open_store
    from manybeam.zoo.lineage import note_prediction

    check_empty(url, "answers")  # again: another process may have written since the start
    store = open_store(url)
    with store.writing() as place:
        zarr.create_group(place)
    try:
        with store.writing() as place:
            root = zarr.open_group(place, mode="r+")
            fill_group(root, answers)
    except BaseException:  # this call created the group; a part of an answer is none
        store.delete("")
        raise
    for ref in dict.fromkeys(answer.ref for answer in answers):
        note_prediction(ref, store.url)


def _atoms_words(answer: "Answer") -> str:
    counts = element_counts(answer)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
    count = len(answer.atoms)
    return f"{count} atom{'s' * (count != 1)}" + (f" ({kinds})" if kinds else "")
