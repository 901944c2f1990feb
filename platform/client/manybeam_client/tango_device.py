"""A Tango device that finds atoms, for control systems that speak Tango: `manybeam-tango`.

It needs the extra `tango` (PyTango). One device is one instrument of the service, as its properties
say. Write a frame to the attribute `frame`; when that returns, the other attributes are those of
its answer, and change events were sent.
"""

import sys
from typing import Any, List, Optional

import numpy as np
from tango import AttrWriteType, DevState
from tango.server import Device, attribute, command, device_property, run

from manybeam_client.answer import Answer
from manybeam_client.checking import check
from manybeam_client.session import Session

LARGEST_PX = 16_384  # side of a frame
MOST_ATOMS, COLUMNS, MOST_MEMBERS = 1_000_000, 7, 256
DEADLINE_MS = 2500.0  # a client of Tango waits 3 s for a device, if it does not say otherwise
_OF_ANSWERS = ("answered", "failed", "atoms", "error")


class Manybeam(Device):
    """Sends frames to a Manybeam service, and holds the last answer."""

    url = device_property(dtype=str, default_value="", doc="Of the service; or MANYBEAM_URL.")
    instrument = device_property(
        dtype=str, default_value="", doc="Its id; the last part of the name of the device if empty."
    )
    ensemble = device_property(dtype=str, default_value="auto", doc="REF that answers, or auto.")
    deadline_ms = device_property(dtype=float, default_value=DEADLINE_MS, doc="Of a frame [ms].")

    frame = attribute(
        dtype=((np.float32,),),
        access=AttrWriteType.WRITE,
        max_dim_x=LARGEST_PX,
        max_dim_y=LARGEST_PX,
        doc="A frame; writing it returns when it was answered.",
    )
    pixel_size_pm = attribute(
        dtype=float,
        access=AttrWriteType.READ_WRITE,
        unit="pm",
        doc="Edge of a pixel of the next frames; 0 lets the service infer it.",
    )
    answered = attribute(dtype=int, doc="Frames that were answered so far.")
    failed = attribute(dtype=int, doc="Frames that were not answered so far.")
    atom_count = attribute(dtype=int, doc="Atoms in the last frame.")
    atoms = attribute(
        dtype=((float,),),
        max_dim_x=COLUMNS,
        max_dim_y=MOST_ATOMS,
        doc="Rows of y, x [px], class, probability, spread_y, spread_x [px], votes.",
    )
    drifted = attribute(dtype=bool, doc="Whether the last frame is out of distribution.")
    ref = attribute(dtype=str, doc="The version that answered, as graphene@3.")
    members = attribute(dtype=(int,), max_dim_x=MOST_MEMBERS, doc="The members that answered.")
    why = attribute(dtype=str, doc="Why these members answered.")
    error = attribute(dtype=str, doc="Why the last frame has no answer; empty if it has one.")
    latency_ms = attribute(dtype=float, unit="ms", doc="Time of the last answer.")

    def init_device(self) -> None:
        """Read the properties. The service may be away: then frames have an error."""
        super().init_device()
        self._answer, self._answered, self._failed = Answer(), 0, 0
        self._size_pm = 0.0
        self._session: Optional[Session] = None
        for name in _OF_ANSWERS:
            self.set_change_event(name, True, False)  # noqa: FBT003 - the interface of PyTango
        try:
            self._session = Session(
                self.url or None, self._name(), self.ensemble, deadline_ms=self.deadline_ms
            )
        except ValueError as error:
            self.set_state(DevState.FAULT)
            self.set_status(f"a property cannot be used: {error}")
        else:
            self.set_state(DevState.ON)
            self.set_status("waits for the first frame")

    def delete_device(self) -> None:
        """Let go of the service."""
        if self._session is not None:
            self._session.close()
        super().delete_device()

    @command(dtype_out=str, doc_out="What is wrong between here and the service, line by line.")
    def Check(self) -> str:  # noqa: N802 - commands of Tango begin with a capital
        """Return a report on the way to the service."""
        return str(check(self.url or None, instrument=self._name()))

    def write_frame(self, frame_yx: Any) -> None:
        """Send a frame, and keep its answer; raises ValueError if a property cannot be used."""
        if self._session is None:
            raise ValueError(self.get_status())
        size_pm = self._size_pm or None
        self._answer = self._session.predict(np.asarray(frame_yx), pixel_size_pm=size_pm)
        if self._answer:
            self._answered += 1
        else:
            self._failed += 1
        self._tell()

    def write_pixel_size_pm(self, value: float) -> None:
        """Set the pixel size of the next frames; raises ValueError if it cannot be one."""
        if value != 0 and not 1 <= value <= 500:
            raise ValueError(f"pixel_size_pm: {value:g} is neither 0 nor from 1 to 500")
        self._size_pm = value

    def read_pixel_size_pm(self) -> float:
        """Return the pixel size of the next frames."""
        return self._size_pm

    def read_answered(self) -> int:
        """Return the number of answered frames."""
        return self._answered

    def read_failed(self) -> int:
        """Return the number of frames without an answer."""
        return self._failed

    def read_atom_count(self) -> int:
        """Return the number of atoms."""
        return len(self._answer.atoms)

    def read_atoms(self) -> Any:
        """Return the atoms of the last frame."""
        return np.asarray(self._answer.atoms, np.float64)

    def read_drifted(self) -> bool:
        """Return whether the last frame is out of distribution; false if that is not known."""
        return bool(self._answer.drifted)

    def read_ref(self) -> str:
        """Return the version that answered."""
        return str(self._answer.meta.get("ref") or "")

    def read_members(self) -> List[int]:
        """Return the members that answered."""
        return list(self._answer.members or [])

    def read_why(self) -> str:
        """Return why these members answered."""
        return str(self._answer.why or "")

    def read_error(self) -> str:
        """Return the error of the last frame."""
        return str(self._answer.error or "")

    def read_latency_ms(self) -> float:
        """Return the time of the last answer."""
        return self._answer.took_ms

    def _name(self) -> str:
        """Return the id of the instrument."""
        return str(self.instrument or self.get_name().rpartition("/")[2])

    def _tell(self) -> None:
        """Set the state, and send the events of a new answer."""
        error = self.read_error()
        self.set_state(DevState.ALARM if error else DevState.ON)
        self.set_status(error or f"{self.read_atom_count()} atoms in the last frame")
        for name in _OF_ANSWERS:
            self.push_change_event(name, getattr(self, "read_" + name)())


def tango_command() -> None:
    """Run the device server."""
    run((Manybeam,), ["manybeam-tango", *sys.argv[1:]])


if __name__ == "__main__":
    tango_command()
