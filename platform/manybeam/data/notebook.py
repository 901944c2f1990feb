"""How a FrameSet looks in a notebook."""

from manybeam.data.frames import FrameSet
from manybeam.data.markup import facts_html, picture_html


def frameset_html(frames: FrameSet) -> str:
    """Return a FrameSet as HTML: its content, and its first frame."""
    kind = type(frames.condition).__name__.lower()
    facts: list[tuple[str, object]] = [
        ("frames", f"{len(frames)} of {frames.shape[0]} x {frames.shape[1]} px"),
        (kind, frames.condition.id),
        ("truth", "yes" if frames.has_truth else "no"),
        ("digest", frames.digest),
    ]
    if not len(frames):
        return facts_html(f"FrameSet {frames.url}", facts)
    size_pm = frames.pixel_size_pm(0)
    facts.insert(1, ("pixel size", f"{size_pm:g} pm" if size_pm else "unknown"))
    picture = picture_html(frames.frame(0), "frame 0")
    return facts_html(f"FrameSet {frames.url}", facts, picture)
