"""TIFF: which of its images is the recorded frame, and its counts.

`tifffile` decodes. Before it opens a file, the chain of pages is walked here, because a damaged
chain may lead in circles; before it decodes, the declared sizes are compared with the file.

Axis letters: n frame, y row, x column, S sample of a colour.
"""

import logging
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from manybeam.data.io.formats import Array, Raw, grey
from manybeam.data.io.limits import JPEG_RATIO, RATIO, FileFault, check_declared
from manybeam.data.io.tifftags import read_tags
from manybeam.data.io.units import as_number

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

# Faults that tifffile finds and passes over; they reach whoever listens, not the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MOST_PAGES = 20_000
MOST_TAGS = 4096
_JPEG_HEAD = 1 << 16  # bytes of a JPEG among which its size stands
GREY = 0.8  # share of a colour table above which it shows counts in grey
FAR = 1 / 16  # share of the largest image from which a grey one is preferred to colours
NEAR = 1 / 4  # the same for one that is better otherwise
_NAMED_AXES = {"E": "wavelengths", "H": "a histogram of lifetimes"}
_FRAME_AXES = {"T": "times", "Z": "depths", "C": "channels", "I": "pages", "S": "channels"}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_PLAIN, _JPEG = 1, {7, 33007}
# These unpack no more than they are asked for: CCITT, LZW, deflate, PackBits, LZMA, Zstandard.
_BOUNDED = {_PLAIN, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, 50013}
_WHITE_IS_ZERO, _RGB, _PALETTE, _YCBCR, _OTHERS = 0, 2, 3, 6, {1, 32844}


class _Form(NamedTuple):
    """How numbers are written in a TIFF: struct's letters, and bytes of a tag."""

    order: str
    count_letter: str
    offset_letter: str
    tag_bytes: int


_FORMS = {
    b"II*\0": _Form("<", "H", "I", 12),
    b"MM\0*": _Form(">", "H", "I", 12),
    b"II+\0": _Form("<", "Q", "Q", 20),
    b"MM\0+": _Form(">", "Q", "Q", 20),
}


def read_tif(path: Path) -> Raw:
    """Read the recorded image of a TIFF, with the calibration that its tags give.

    Of several images the recorded one is taken: no thumbnail, no mask, and of images of similar
    size the one that is not a picture for display (in colour, by JPEG, or of 8 bits beside 16).
    """
    import tifffile

    notes = _walk(path)
    # An OME file may name others, anywhere; they are not opened.
    with tifffile.TiffFile(path, _multifile=False) as tif:
        images = _images(tif)
        image = _recorded(images)
        _check(tif, image, path.stat().st_size)
        raw = Raw(np.empty(0), notes=notes)
        _note_choice(raw.notes, images, image)
        raw.array = _grey_frames(tif, image, raw.notes)
        _calibrate(raw, tif.imagej_metadata or {})
        read_tags(raw, tif, image)
    return raw


def _walk(path: Path) -> list[str]:
    """Follow the chain of pages to its end.

    Returns:
        A note if the chain breaks off.

    Raises:
        FileFault: it is no TIFF, has no page, or its pages lead in circles.
    """
    size, seen = path.stat().st_size, set[int]()
    with path.open("rb") as file:
        head = file.read(16)
        form = _FORMS.get(head[:4])
        if form is None:
            raise FileFault("it does not start like a TIFF")
        at = struct.calcsize(form.offset_letter)
        (offset,) = struct.unpack_from(form.order + form.offset_letter, head.ljust(16, b"\0"), at)
        while offset:
            if offset in seen:
                raise FileFault("its pages lead back to an earlier one: damaged")
            if len(seen) == MOST_PAGES:
                raise FileFault(f"it has more than {MOST_PAGES} pages: export them as a stack")
            following = _next_page(file, offset, form)
            if offset >= size or following is None:
                break
            seen.add(offset)
            offset = following
        else:
            if not seen:
                raise FileFault("it has no page")
            return []
    if not seen:
        raise FileFault("its first page lies beyond its end: cut short")
    return [f"its list of pages breaks off after {len(seen)}: frames may be missing"]


def _next_page(file: BinaryIO, offset: int, form: _Form) -> int | None:
    """Return the offset of the page after the one at an offset; None if it cannot be read."""
    file.seek(offset)
    tag_count = _number(file, form.order + form.count_letter)
    if tag_count is None or tag_count > MOST_TAGS:
        return None
    file.seek(tag_count * form.tag_bytes, 1)
    return _number(file, form.order + form.offset_letter)


def _number(file: BinaryIO, letters: str) -> int | None:
    content = file.read(struct.calcsize(letters))
    return struct.unpack(letters, content)[0] if len(content) == struct.calcsize(letters) else None


def _images(tif: "TiffFile") -> "list[TiffPageSeries]":
    """Return the images: as the program that wrote the file arranged its pages, else alike ones."""
    is_arranged = tif.is_ome or tif.is_imagej or tif.is_shaped or tif.is_stk or tif.is_lsm
    found = list(tif.series) if is_arranged else _alike(tif)
    images = [one for one in found if one.dtype is not None and "Y" in one.axes and "X" in one.axes]
    if not images:
        raise FileFault("it has no page with an image")
    return images


def _alike(tif: "TiffFile") -> "list[TiffPageSeries]":
    """Return pages of one kind as one image each, also those that belong to other pages."""
    from tifffile import TiffPageSeries

    kinds: dict[tuple[Any, ...], list[TiffPage]] = {}
    for page in _every_page(tif):
        if page.shape and page.dtype is not None:
            rank = (*_demerits(page), page.photometric, page.samplesperpixel)
            kinds.setdefault((page.shape, page.axes, page.dtype.str, *rank), []).append(page)
    return [
        TiffPageSeries(
            pages,
            (len(pages), *pages[0].shape),
            pages[0].dtype,
            "I" + pages[0].axes,
            kind="generic",
            squeeze=False,
        )
        for pages in kinds.values()
    ]


def _every_page(tif: "TiffFile") -> "Iterator[TiffPage]":
    seen = set[int]()
    for page in tif.pages:
        below = page.aspage().pages if page.subifds else None
        for one in (page, *(below or ())):
            if one.offset not in seen:
                seen.add(one.offset)
                yield one.aspage()


def _demerits(page: "TiffPage") -> tuple[bool, bool, bool, bool]:
    """Return the reasons not to take a page, worst first."""
    return (
        bool(page.is_reduced or page.subfiletype & (_REDUCED | _MASK)),
        page.photometric in (_RGB, _YCBCR),
        page.compression in _JPEG,
        page.bitspersample <= 8,
    )


def _recorded(images: "list[TiffPageSeries]") -> "TiffPageSeries":
    """Return the image to take."""
    found = [one for one in images if not _demerits(one.keyframe)[0]] or images
    most = max(map(_frame_px, found))
    # A picture for display may be magnified.
    grey_ones = [one for one in found if not _demerits(one.keyframe)[1]]
    if grey_ones and max(map(_frame_px, grey_ones)) >= FAR * most:
        found, most = grey_ones, max(map(_frame_px, grey_ones))
    near = [one for one in found if _frame_px(one) > NEAR * most]
    return min(near, key=lambda one: (_demerits(one.keyframe), -_frame_px(one)))


def _frame_px(image: "TiffPageSeries") -> int:
    return math.prod(image.shape[image.axes.index(axis)] for axis in "YX")


def _note_choice(notes: list[str], images: "list[TiffPageSeries]", image: "TiffPageSeries") -> None:
    """Note what was chosen, and what may mean something else."""
    if len(images) > 1:
        shape = " x ".join(str(side) for side in image.shape if side > 1)
        is_largest = all(_frame_px(image) > _frame_px(one) for one in images if one is not image)
        which = "the largest" if is_largest else "the recorded one"
        place = 1 + next(place for place, one in enumerate(images) if one is image)
        notes.append(f"{len(images)} images; {which} was taken (number {place}), {shape}")
    channels = image.shape[image.axes.index("C")] if "C" in image.axes else 1
    if channels > 1:
        notes.append(
            f"{channels} channels, each taken as a frame: export the channel of one detector"
        )


def _check(tif: "TiffFile", image: "TiffPageSeries", stored_bytes: int) -> None:
    """Refuse an image that is no frame, or that its file cannot hold."""
    page = image.keyframe
    for axis, meaning in _NAMED_AXES.items():
        if axis in image.axes and image.shape[image.axes.index(axis)] > 1:
            raise FileFault(f"one of its axes has {meaning}: a spectrum image, not a frame")
    is_known = page.photometric in {_WHITE_IS_ZERO, _RGB, _PALETTE} | _OTHERS
    if not is_known and not (page.photometric == _YCBCR and page.compression in _JPEG):
        name = getattr(page.photometric, "name", page.photometric)
        raise FileFault(f"its colours ({name}) are not understood: export it in grey")
    rest = [n for n, axis in zip(image.shape, image.axes, strict=True) if axis not in "YX"]
    sides = [image.shape[image.axes.index(axis)] for axis in "YX"]
    ratio = 10 * RATIO if page.bitspersample == 1 else RATIO
    if page.compression == _PLAIN or page.compression in _JPEG:
        ratio = 1 if page.compression == _PLAIN else JPEG_RATIO
    check_declared((*rest, *sides), page.bitspersample / 8, stored_bytes, ratio)
    total = 0
    # Pages that are only declared follow the first one without a gap.
    for one in [page] if image.is_truncated else image:
        if one is None:
            raise FileFault("some of its planes are in other files: export them as one file")
        segments = list(zip(one.dataoffsets, one.databytecounts, strict=False))
        total += sum(count for _, count in segments)
        if any(offset + count > stored_bytes for offset, count in segments):
            raise FileFault("its pixels lie beyond the end of the file: the file is cut short")
        _check_packing(tif, page, segments)
    if total > stored_bytes:
        raise FileFault("several of its pages have the same pixels: damaged")


def _check_packing(tif: "TiffFile", page: "TiffPage", segments: Sequence[tuple[int, int]]) -> None:
    """Refuse parts that may unpack to far more than the image: each is unpacked as a whole."""
    part_px = math.prod(page.chunks)
    if part_px > 4 * max(page.imagewidth * page.imagelength * page.samplesperpixel, 1 << 20):
        raise FileFault(f"it declares parts of {part_px} pixels: damaged")
    if page.compression in _BOUNDED:
        return
    if page.compression not in _JPEG:
        name = getattr(page.compression, "name", page.compression)
        raise FileFault(f"it is packed by {name}, which is not read: export it unpacked or by LZW")
    for offset, count in segments:
        tif.filehandle.seek(offset)
        if not 0 < _jpeg_px(tif.filehandle.read(min(count, _JPEG_HEAD))) <= 4 * part_px:
            raise FileFault("one of its JPEGs declares another size than the image has: damaged")


def _jpeg_px(content: bytes) -> int:
    """Return the pixels that a JPEG declares; 0 if it declares none."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a filling byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows, columns = struct.unpack_from(">2H", content, at + 5)
            return int(rows * columns)
        else:
            at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    return 0


def _grey_frames(tif: "TiffFile", image: "TiffPageSeries", notes: list[str]) -> Array:
    """Return (y, x) or (n, y, x): counts, or the grey of colours."""
    page, axes = image.keyframe, image.axes
    if image.kind == "generic" and len(image) > 1:
        array = np.empty(image.shape, image.dtype)
        for place, one in enumerate(image):
            array[place] = one.asarray()  # type: ignore[union-attr] # every page was checked
    else:
        whole = page.asarray() if image.kind == "generic" else image.asarray(squeeze=False)
        array = whole.reshape(image.shape)
    places = [place for place, axis in enumerate(axes) if axis not in "SYX"]
    places += [axes.index(axis) for axis in "YXS" if axis in axes]
    array, order = array.transpose(places), [axes[place] for place in places]
    has_samples = "S" in axes
    if page.photometric == _PALETTE and page.colormap is not None:
        indices = array[..., 0] if has_samples else array  # what follows is opacity
        array = _coloured(indices, page.colormap, notes, is_lut=tif.is_imagej)
        has_samples = array.ndim > indices.ndim
    if has_samples:
        array = _without_samples(array, page, notes)
        if array.ndim == len(order) and order[-1] == "S":  # each is a frame
            order = ["S", *order[:-1]]
    if page.photometric == _WHITE_IS_ZERO and 262 in page.tags:  # tifffile's default too
        array = _inverted(array, page.bitspersample, notes, is_shown_only=tif.is_imagej)
    frames = [(axis, side) for axis, side in zip(order, array.shape[:-2], strict=False) if side > 1]
    if len(frames) > 1 and all(axis in _FRAME_AXES for axis, _ in frames):
        named = " x ".join(f"{side} {_FRAME_AXES[axis]}" for axis, side in frames)
        notes.append(f"{named}: each was taken as a frame, in this order")
        return array.reshape(-1, *array.shape[-2:])
    return array.reshape([side for _, side in frames] + list(array.shape[-2:]))


def _coloured(array: Array, colormap: Array, notes: list[str], *, is_lut: bool) -> Array:
    """Return the colours (..., 3) of indices, or the indices where they are counts.

    They are where the table is grey but for the marks of an overlay, as Zeiss writes it, and where
    ImageJ shows counts in false colours: the steps of its tables are small.
    """
    if (colormap % 256 == colormap // 256).all() or not (colormap % 256).any():
        colormap = colormap // 256  # of 8 bits, as in most files
    if (colormap == np.arange(colormap.shape[1])).all(axis=0).mean() > GREY:
        return array
    steps = np.abs(np.diff(colormap.astype(np.int32), axis=1)).max(initial=0)
    if is_lut and steps < 0.2 * colormap.max(initial=1):
        notes.append("its colours show counts: the counts were taken")
        return array
    return np.moveaxis(colormap[:, np.minimum(array, colormap.shape[1] - 1)], 0, -1)


def _without_samples(array: Array, page: "TiffPage", notes: list[str]) -> Array:
    """Return (..., y, x) of (..., y, x, S)."""
    samples = array.shape[-1]
    if page.photometric in (_RGB, _YCBCR, _PALETTE):
        return grey(array[..., :3], notes)
    opacity = sum(int(kind) in (1, 2) for kind in page.extrasamples)
    if samples - opacity == 1 or (array == array[..., :1]).all():
        return array[..., 0]
    notes.append(f"{samples} channels, each taken as a frame: export the channel of one detector")
    return np.moveaxis(array, -1, 0)


def _calibrate(raw: Raw, written: Mapping[str, Any]) -> None:
    """Turn stored numbers into counts where ImageJ states a line for them.

    It stores signed numbers of 16 bits from 0, with an offset of -32768, and what was inverted with
    a slope below zero.
    """
    offset, slope = (as_number(written.get(name)) for name in ("c0", "c1"))
    if "cf" not in written:
        return
    is_line = as_number(written["cf"]) == 0
    if not is_line or offset is None or not slope:
        how = "a line without its numbers" if is_line else "a curve"
        raw.notes.append(f"ImageJ calibrates its counts by {how}: they were taken as stored")
        return
    if (offset, slope) != (0.0, 1.0):
        raw.array = raw.array * slope + offset
        raw.notes.append(f"its counts are {slope:g} x stored {offset:+g}, as ImageJ states")


def _inverted(array: Array, bits: int, notes: list[str], *, is_shown_only: bool) -> Array:
    """Return an image whose 0 is white with atoms as bright as it shows them."""
    if is_shown_only or array.dtype.kind not in ("b", "u"):
        notes.append("it declares 0 to be white: if atoms are dark, invert it")
        return array
    notes.append("it declares 0 to be white: its counts were inverted, as it is shown")
    if array.dtype.kind == "b":
        return ~array
    return ((1 << bits) - 1 - array).astype(array.dtype)
