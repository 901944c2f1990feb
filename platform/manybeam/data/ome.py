"""OME-Zarr 0.5 metadata of a FrameSet, so that other readers find axes and pixel size.

Source:
    OME-NGFF 0.5 (ngff.openmicroscopy.org/0.5), sections multiscales and axes; written by us.
"""

from typing import Any

AXES = ("n", "y", "x")


def multiscales(name: str, pixel_size_pm: float | None) -> dict[str, Any]:
    """Return the value of the group attribute `ome`.

    A FrameSet is one resolution of a stack of frames. Its first axis is neither space, time nor
    channel. OME-Zarr has one scale for all frames. If pixel sizes differ or are unknown, it is 1.0
    without a unit; the array `pixel_size_pm` beside the frames has the size of each frame.

    Args:
        name: name of the set.
        pixel_size_pm: edge of a pixel of all frames, in picometres; None if they differ.

    Example:
        >>> multiscales("a", 20.0)["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        [{'type': 'scale', 'scale': [1.0, 0.02, 0.02]}]
    """
    edge = 1.0 if pixel_size_pm is None else pixel_size_pm / 1000
    unit = {} if pixel_size_pm is None else {"unit": "nanometer"}
    scale = {"type": "scale", "scale": [1.0, edge, edge]}
    axes = [{"name": "n", "type": "frame"}]
    axes += [{"name": axis, "type": "space", **unit} for axis in AXES[1:]]
    dataset = {"path": "0", "coordinateTransformations": [scale]}
    return {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": [dataset]}],
    }
