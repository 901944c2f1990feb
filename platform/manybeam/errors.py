"""Every exception Manybeam raises, drawn as a tree, and what each means to a shell and to HTTP.

A message has three parts: what is wrong with the value seen; what is allowed; what to do now.
`ManybeamError` keeps them apart (`what`, `why`, `hint`) so that the command line can print three
lines and the service can fill a problem+json document from the same exception.
"""

import re
from typing import Any


class ManybeamError(Exception):
    """The root of all errors we raise on purpose.

    Args:
        what: what is wrong, naming the value seen.
        why: what is allowed, or why it cannot be done; may be empty.
        hint: what to do now, an exact command where there is one; may be empty.
    """

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__("; ".join(part for part in (what, why, hint) if part))

    def __reduce__(self) -> tuple[type["ManybeamError"], tuple[str, str, str]]:
        """Pickle the three parts apart: errors cross process borders on a Ray cluster."""
        return type(self), (self.what, self.why, self.hint)


# -- what the caller gave us is wrong ---------------------------------------------------------
class InvalidInput(ManybeamError, ValueError):
    """A value a caller gave is not usable."""


class InvalidSpec(InvalidInput):
    """A YAML file, or a value meant for one, breaks the rules of `manybeam.spec`."""


class InvalidSetting(InvalidInput):
    """An environment variable or a line of `manybeam.toml` cannot be used."""


class InvalidFrame(InvalidInput):
    """An array is not a frame: wrong axes, empty, complex, or nothing but NaN."""


class UnreadableFile(InvalidInput):
    """A file is not what its name promises, is cut short or holds no image."""


class UnsupportedMedia(InvalidInput):
    """A body or file in a form we do not read."""


class MissingPixelSize(InvalidInput):
    """The edge of a pixel is needed and neither the file nor the caller gives it."""


class WrongMethod(InvalidInput):
    """A path of the service was asked with a method it does not take."""


class TooLarge(InvalidInput):
    """A body, file or array above the set limit."""


class MemberCountError(InvalidInput):
    """Fewer members than the answer asked for can be made from."""


# -- what was asked for is not there ----------------------------------------------------------
class NotFound(ManybeamError, LookupError):
    """Something named by the caller does not exist."""


class UnknownRef(NotFound):
    """No ensemble, version, alias or member of that name; the nearest names are in the hint."""


class UnknownCondition(NotFound):
    """No imaging condition of that id."""


class UnknownFrameSet(NotFound):
    """No FrameSet at that URL."""


# -- it clashes with what is there ------------------------------------------------------------
class Conflict(ManybeamError, RuntimeError):
    """Somebody else wrote first, or the name is taken."""


class RefusedByGate(Conflict):
    """A gate said no: the parent is kept."""


class PortInUse(Conflict):
    """A port that a server needs is held by another process."""


# -- parts of the platform that cannot be reached ---------------------------------------------
class Unreachable(ManybeamError, ConnectionError):
    """A service, store or registry does not answer."""


class StoreUnreachable(Unreachable):
    """The object store does not answer, or refuses our credentials."""


class ZooUnreachable(Unreachable):
    """The MLflow server or its database does not answer."""


class NoCapacity(Unreachable):
    """The service answers but cannot take this request now."""


class Busy(NoCapacity):
    """As many requests wait as the service takes; the same request may be sent again soon."""


class DeadlineExceeded(Unreachable, TimeoutError):
    """The answer would come after the deadline the caller set."""


# -- the work itself failed -------------------------------------------------------------------
class WorkFailed(ManybeamError, RuntimeError):
    """A job, member or step failed."""


class MemberDiverged(WorkFailed):
    """The loss of a member became NaN or infinite; the other members go on."""


class WriteFailed(WorkFailed, OSError):
    """A write could not be finished; what was there before is untouched."""


class Corrupt(WorkFailed):
    """Stored bytes do not have the digest that was recorded for them."""


class NotAllowed(ManybeamError, PermissionError):
    """The caller may not do this."""


class OutOfDistribution(ManybeamError, RuntimeError):
    """No member fits the frame and the caller asked to fail then (`--fail-on-drift`)."""


class MissingPackage(ManybeamError, ImportError):
    """An optional package is needed; the hint names the pip line."""


# One row per kind: class -> (HTTP status, exit code). The first match along the MRO counts.
_OUTCOME: dict[type[BaseException], tuple[int, int]] = {
    UnreadableFile: (400, 2),
    UnsupportedMedia: (415, 2),
    WrongMethod: (405, 2),
    TooLarge: (413, 2),
    InvalidFrame: (422, 2),
    InvalidInput: (422, 2),
    NotFound: (404, 4),
    Conflict: (409, 6),
    Busy: (429, 3),
    NoCapacity: (503, 3),
    DeadlineExceeded: (504, 3),
    Unreachable: (503, 3),
    NotAllowed: (403, 5),
    OutOfDistribution: (409, 7),
    MissingPackage: (501, 1),
    WorkFailed: (500, 1),
    ManybeamError: (500, 1),
}


def _outcome(error: BaseException) -> tuple[int, int]:
    return next((_OUTCOME[kind] for kind in type(error).__mro__ if kind in _OUTCOME), (500, 1))


def http_status(error: BaseException) -> int:
    """Return the HTTP status that tells this error; 500 for one that is not ours."""
    return _outcome(error)[0]


def exit_code(error: BaseException) -> int:
    """Return the exit code that tells this error; 1 for one that is not ours."""
    return 130 if isinstance(error, KeyboardInterrupt) else _outcome(error)[1]


def problem(error: ManybeamError, request_id: str) -> dict[str, Any]:
    """Return the problem+json document (RFC 9457) of an error of ours."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
    return {
        "type": f"urn:manybeam:{name}",
        "title": (type(error).__doc__ or name).splitlines()[0].rstrip("."),
        "status": http_status(error),
        "detail": "; ".join(part for part in (error.what, error.why) if part),
        "hint": error.hint,
        "request_id": request_id,
    }
