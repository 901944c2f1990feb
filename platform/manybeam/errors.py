"""All exceptions of Manybeam, with the exit code and the HTTP status of each.

A message has three parts: what is wrong with the value; what is allowed; what to do now.
`ManybeamError` stores them separately (`what`, `why`, `hint`). The command line prints three lines
and the service fills a problem+json document from the same exception.
"""

import re
from typing import Any


class ManybeamError(Exception):
    """The base class of all errors that Manybeam raises on purpose.

    Args:
        what: what is wrong, with the value.
        why: what is allowed, or why it cannot be done; may be empty.
        hint: what to do now, as a command if there is one; may be empty.
    """

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__("; ".join(part for part in (what, why, hint) if part))

    def __reduce__(self) -> tuple[type["ManybeamError"], tuple[str, str, str]]:
        """Pickle the three parts separately: on a Ray cluster, errors go to other processes."""
        return type(self), (self.what, self.why, self.hint)


# -- a value from the caller is wrong ---------------------------------------------------------
class InvalidInput(ManybeamError, ValueError):
    """A value from the caller cannot be used."""


class InvalidSpec(InvalidInput):
    """A YAML file, or a value for one, breaks the rules of `manybeam.spec`."""


class InvalidSetting(InvalidInput):
    """An environment variable or a line of `manybeam.toml` cannot be used."""


class InvalidFrame(InvalidInput):
    """An array is not a frame: wrong axes, empty, complex, or only NaN."""


class UnreadableFile(InvalidInput):
    """A file is not of the type in its name, is cut short, or holds no image."""


class UnsupportedMedia(InvalidInput):
    """The format of a request body or file cannot be read."""


class MissingPixelSize(InvalidInput):
    """The pixel size is needed; neither the file nor the caller gives it."""


class DoubtfulPixelSize(InvalidInput):
    """The stated pixel size contradicts the frame, or what the members were trained for."""


class NotOffered(InvalidInput):
    """A part of a protocol that the service does not have."""


class WrongMethod(InvalidInput):
    """A path of the service does not accept this HTTP method."""


class TooLarge(InvalidInput):
    """A request body, file or array is above the limit."""


class MalformedRequest(InvalidInput):
    """A request breaks the rules of HTTP, or contradicts its own headers."""


class UpgradeRequired(InvalidInput):
    """This path speaks another protocol, to which the request must ask to change."""


class TooSlow(InvalidInput):
    """A request body arrives too slowly."""


class MemberCountError(InvalidInput):
    """The requested answer needs more members."""


# -- a name does not exist --------------------------------------------------------------------
class NotFound(ManybeamError, LookupError):
    """Something named by the caller does not exist."""


class UnknownRef(NotFound):
    """There is no ensemble, version, alias or member of that name; the hint gives similar names."""


class UnknownCondition(NotFound):
    """There is no imaging condition of that id."""


class UnknownFrameSet(NotFound):
    """There is no FrameSet at that URL."""


# -- a conflict with the present state --------------------------------------------------------
class Conflict(ManybeamError, RuntimeError):
    """Another person or process made a change first, or the name is in use."""


class RefusedByGate(Conflict):
    """A gate refused the version; the present version is kept."""


class PortInUse(Conflict):
    """Another process uses a port that a server needs."""


# -- parts of the platform that cannot be reached ---------------------------------------------
class Unreachable(ManybeamError, ConnectionError):
    """A service, store or registry does not answer."""


class StoreUnreachable(Unreachable):
    """The object store does not answer, or refuses the credentials."""


class ZooUnreachable(Unreachable):
    """The MLflow server or its database does not answer."""


class DatabaseUnreachable(Unreachable):
    """The database of our own does not answer."""


class NoCapacity(Unreachable):
    """The service answers but cannot accept this request now."""


class Busy(NoCapacity):
    """Too many requests are waiting; send the same request again soon.

    Attributes:
        reason: one word, for metrics.
        retry_s: after how many seconds it makes sense to send it again.
    """

    def __init__(
        self, what: str, why: str = "", hint: str = "", *, reason: str = "full", retry_s: int = 1
    ) -> None:
        super().__init__(what, why, hint)
        self.reason, self.retry_s = reason, retry_s


class DeadlineExceeded(Unreachable, TimeoutError):
    """The answer would come after the deadline of the caller."""


# -- the work itself failed -------------------------------------------------------------------
class WorkFailed(ManybeamError, RuntimeError):
    """A job, member or step failed."""


class MemberDiverged(WorkFailed):
    """The loss of a member became NaN or infinite; the other members continue."""


class WriteFailed(WorkFailed, OSError):
    """A write could not be finished; the data from before is unchanged."""


class Corrupt(WorkFailed):
    """Stored bytes do not have the recorded digest."""


class NotAllowed(ManybeamError, PermissionError):
    """The caller may not do this."""


class NotAuthenticated(NotAllowed):
    """The caller shows no token that is valid."""


class CallerGone(ManybeamError, ConnectionError):
    """The caller closed the connection before the answer."""


class OutOfDistribution(ManybeamError, RuntimeError):
    """The frame is out of distribution and the caller passed `--fail-on-drift`."""


class MissingPackage(ManybeamError, ImportError):
    """An optional package is needed; the hint gives the pip command."""


# One row for each class: (HTTP status, exit code). The first match along the MRO counts.
_OUTCOME: dict[type[BaseException], tuple[int, int]] = {
    UnreadableFile: (400, 2),
    MalformedRequest: (400, 2),
    UnsupportedMedia: (415, 2),
    NotOffered: (400, 2),
    WrongMethod: (405, 2),
    UpgradeRequired: (426, 2),
    TooLarge: (413, 2),
    TooSlow: (408, 2),
    InvalidFrame: (422, 2),
    InvalidInput: (422, 2),
    NotFound: (404, 4),
    Conflict: (409, 6),
    Busy: (429, 3),
    NoCapacity: (503, 3),
    DeadlineExceeded: (504, 3),
    Unreachable: (503, 3),
    NotAuthenticated: (401, 5),
    NotAllowed: (403, 5),
    CallerGone: (499, 1),  # nginx's number, for the metrics; nobody reads this answer
    OutOfDistribution: (409, 7),
    MissingPackage: (501, 1),
    WorkFailed: (500, 1),
    ManybeamError: (500, 1),
}


def _outcome(error: BaseException) -> tuple[int, int]:
    return next((_OUTCOME[kind] for kind in type(error).__mro__ if kind in _OUTCOME), (500, 1))


def http_status(error: BaseException) -> int:
    """Return the HTTP status of an error; 500 for errors of other packages."""
    return _outcome(error)[0]


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error; 1 for errors of other packages."""
    return 130 if isinstance(error, KeyboardInterrupt) else _outcome(error)[1]


def problem(error: ManybeamError, request_id: str) -> dict[str, Any]:
    """Return the problem+json document (RFC 9457) of an error."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
    return {
        "type": f"urn:manybeam:{name}",
        "title": (type(error).__doc__ or name).splitlines()[0].rstrip("."),
        "status": http_status(error),
        "detail": "; ".join(part for part in (error.what, error.why) if part),
        "hint": error.hint,
        "request_id": request_id,
    }
