"""Instrument files in the bodies of requests: read in other processes, as the command line does."""

from manybeam.data.io.file_readers import FileReaders, ReaderEnded
from manybeam.errors import InvalidInput
from manybeam.predictor.deadline import Deadline
from manybeam.serve import wire
from manybeam.serve.metrics import Meter


class FileBodies:
    """Reads the files of one replica's requests; its processes end with it.

    Args:
        max_frame_px: largest number of pixels in one request.
        meter: counts files by what became of them.
    """

    def __init__(self, max_frame_px: int, meter: Meter) -> None:
        self._readers = FileReaders(max_frame_px)
        self._most, self._meter = max_frame_px, meter

    def frames(self, name: str, body: bytes | bytearray, deadline: Deadline) -> wire.Frames:
        """Return the frames of a file, and what it says of them.

        Args:
            name: of the file; its suffix says the format.
            body: the bytes of the file.
            deadline: of the answer; reading is stopped when nobody waits any more.

        Raises:
            ManybeamError: as `FileReaders.read` and `wire.read_frames` raise.
        """
        try:
            raw = self._readers.read(name, body, lambda: deadline.check("the file was read"))
            frames = wire.read_frames(raw.array, self._most)
        except InvalidInput as error:
            self._meter.file("ended" if isinstance(error, ReaderEnded) else "refused")
            raise
        self._meter.file("read")
        return wire.of_file(frames, name, raw)
