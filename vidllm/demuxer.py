"""One open video file for PyAV: its video stream, and getting to a packet of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
from av.container.input import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vidllm.errors import InputError
from vidllm.packets import NEVER, PacketIndex, read_only
from vidllm.wholeness import cut_off

# These demuxers turn text into pictures or open further files that the text names.
_REFUSED_FORMATS = {"tty", "concat", "hls", "dash", "sdp", "rtsp", "imf"}
_READ_ON = 48  # packets: reading on over so many costs less than a seek


class Source:
    """One open file and where its demuxer stands."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        self._path, self._threads = path, threads
        self.next: int | None = 0  # number of the packet that comes next, None if unknown
        self._open()

    def _open(self) -> None:
        try:
            self.container = self._open_container()
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                f"{self._path.name} is not a video, or is damaged beyond reading"
                f" ({getattr(error, 'strerror', None) or error})"
            ) from error
        try:
            self.stream = self._video_stream()
        except BaseException:
            self.container.close()
            raise
        self.size = (self.stream.codec_context.height, self.stream.codec_context.width)
        self._demux = self.container.demux(self.stream)
        self._waiting: tuple[int, Packet[VideoStream]] | None = None

    def _open_container(self) -> InputContainer:
        try:
            # "file:" keeps names such as "a:b.mp4" from being read as a protocol.
            return av.open(
                f"file:{self._path.absolute()}",
                mode="r",
                options={"protocol_whitelist": "file"},
                metadata_errors="ignore",
            )
        except av.FFmpegError:
            cut, whole = cut_off(self._path)
            if not cut or not whole:
                raise
            # A fragmented MP4 that ends within a fragment opens without that fragment.
            return av.open(_Head(self._path, whole), mode="r", metadata_errors="ignore")

    def _video_stream(self) -> VideoStream:
        if self.container.format.name in _REFUSED_FORMATS:
            raise InputError(f"{self._path.name} is not a video but a text or a playlist")
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in self.container.streams.video if not s.disposition & cover]
        if not streams:
            raise InputError(f"{self._path.name} has no video stream (it may be audio only)")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(f"{self._path.name}: no decoder for this kind of video; convert it")
        read_only(self.container, stream)
        if self._threads:
            stream.codec_context.thread_count = self._threads
        else:
            stream.thread_type = "AUTO"
        return stream

    def packets(
        self, index: PacketIndex, first: int, last: int
    ) -> Iterator[tuple[int, Packet[VideoStream]]]:
        """Packets ``first`` to ``last`` with their numbers, from wherever the file stands."""
        if self.next is None or not self.next <= first <= self.next + _READ_ON:
            self._go_to(index, first)
        for number, packet in self._read(index):
            if number >= first:
                yield number, packet
            if number >= last:
                return

    def _read(self, index: PacketIndex) -> Iterator[tuple[int, Packet[VideoStream]]]:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.next = waiting[0] + 1
            yield waiting
        failures = 0
        while failures < 8:
            try:
                packet = next(self._demux)
            except StopIteration:
                break
            except av.FFmpegError:
                failures += 1
                self._demux = self.container.demux(self.stream)
                continue
            if not packet.size:
                continue
            if index.places is not None:
                number = index.places.get(-1 if packet.pos is None else packet.pos, -1)
                packet.pts = int(index.pts[number]) if number >= 0 else None
            else:
                number = index.number(packet.pts)
            if number < 0 and self.next is not None:
                number = self.next  # without a time of its own: known by its place
            if number >= 0:
                self.next = number + 1
                yield number, packet
        self.next = None

    def _go_to(self, index: PacketIndex, first: int) -> None:
        """Stand at or before packet ``first``: by seeking, or from the start where that fails."""
        target = first
        for _ in range(3):
            if index.pts[target] == NEVER:
                break
            with contextlib.suppress(av.FFmpegError, OSError):
                self.container.seek(int(index.pts[target]), stream=self.stream)
                self._demux = self.container.demux(self.stream)
                reached = next(self._read(index), None)
                if reached is not None and reached[0] <= first:
                    self._waiting, self.next = reached, reached[0]
                    return
            target = index.key_before(target)
        self.restart()

    def restart(self) -> None:
        """Stand before the first packet."""
        self.container.close()
        self._open()
        self.next = 0


class _Head(io.RawIOBase):
    """The first bytes of a file as if it ended there."""

    def __init__(self, path: Path, size: int) -> None:
        self._file, self._size = path.open("rb"), size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == io.SEEK_END:
            return self._file.seek(self._size + offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
