"""One open video file for PyAV: its video stream, and getting to a packet of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import av
from av.container.input import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vidllm.errors import InputError

from .display import display_size
from .integrity import cut_off
from .packets import NEVER, PacketIndex, read_only
from .recordings import Recording
from .sample_table import overstated

# These demuxers turn text into pictures or open further files that the text names.
_REFUSED_FORMATS = {"tty", "concat", "hls", "dash", "sdp", "rtsp", "imf"}
_FAR = "100000000"  # bytes and microseconds that are looked at for the size of the pictures
_READ_ON = 48  # packets: reading on over so many costs less than a seek


class Source:
    """One open file and where its demuxer stands."""

    def __init__(self, recording: Recording, threads: int = 0) -> None:
        self._recording, self._threads = recording, threads
        self.next: int | None = 0  # number of the packet that comes next, None if unknown
        self.notes: list[str] = []
        self._open()

    def _open(self) -> None:
        self.notes = []
        try:
            self.container = self._open_container()
        except (av.FFmpegError, OSError) as error:
            why = overstated(self._recording) or getattr(error, "strerror", None) or error
            raise InputError(
                f"{self._recording.name} is not a video, or is damaged beyond reading ({why})"
            ) from error
        try:
            self.stream = self._video_stream()
        except BaseException:
            self.container.close()
            raise
        self.size, notes = display_size(self.stream)
        self.notes += notes
        self._demux = self.container.demux(self.stream)
        self._waiting: tuple[int, Packet[VideoStream]] | None = None

    def _open_container(self) -> InputContainer:
        try:
            container = _opened(self._recording)
            if any(s.codec_context and not s.codec_context.width for s in container.streams.video):
                # The first picture comes late, or is long in coming: look further for its size.
                container.close()
                container = _opened(self._recording, {"analyzeduration": _FAR, "probesize": _FAR})
            return container
        except av.FFmpegError:
            cut, whole, _ = cut_off(self._recording)
            if not cut or not whole:
                raise
            # A fragmented MP4 that ends within a fragment opens without that fragment.
            return _opened(self._recording.head(whole))

    def _video_stream(self) -> VideoStream:
        if self.container.format.name in _REFUSED_FORMATS:
            raise InputError(f"{self._recording.name} is not a video but a text or a playlist")
        stream = self._best_stream()
        if stream is None:
            raise InputError(f"{self._recording.name} has no video stream (it may be audio only)")
        if stream.codec_context is None:
            raise InputError(
                f"{self._recording.name}: no decoder for this kind of video; convert it"
            )
        if not (stream.codec_context.width and stream.codec_context.height):
            webp = "webp" in self.container.format.name
            what = "no decoder for animated WebP" if webp else "it does not tell its pictures' size"
            raise InputError(f"{self._recording.name}: {what}; convert it")
        read_only(self.container, stream)
        if self._threads:
            stream.codec_context.thread_count = self._threads
        else:
            stream.thread_type = "AUTO"
        return stream

    def _best_stream(self) -> VideoStream | None:
        """The video that FFmpeg calls best: by default mark, then by frames and bit rate.

        Pictures that belong to a file (covers, thumbnails) and streams that nothing can decode
        are taken only where there is nothing else.
        """
        cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        streams = [s for s in self.container.streams.video if not s.disposition & cover]
        able = [s for s in streams if s.codec_context is not None] or streams
        best = self.container.streams.best("video")
        stream = next((s for s in able if best is not None and s.index == best.index), None)
        if stream is None and able:
            default = av.stream.Disposition.default
            stream = max(able, key=lambda s: (bool(s.disposition & default), s.frames))
        if stream is not None and len(streams) > 1:
            number = streams.index(stream) + 1
            self.notes.append(f"the file has {len(streams)} video streams: number {number} is read")
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
            except IndexError:  # of a stream that came after the file was opened
                self._demux = self.container.demux(self.stream)
                continue
            if not packet.size:
                continue
            number = index.number(packet, self.next)
            if 0 <= number < len(index.pts):
                self.next = number + 1
                # What the decoder makes of the packet is known by its number.
                packet.pts, packet.dts = number, None
                yield number, packet
        self.next = None

    def _go_to(self, index: PacketIndex, first: int) -> None:
        """Stand at or before packet ``first``: by seeking, or from the start where that fails."""
        target = first
        # A time that comes more than once leads anywhere; only a place in the file is sure.
        by_place = bool(index.joins) and self.container.format.name == "mpegts"
        for _ in range(0 if index.joins and not by_place else 3):
            if index.stamp(target) == NEVER:
                break
            with contextlib.suppress(av.FFmpegError, OSError):
                self._seek(index, target, by_place)
                self._demux = self.container.demux(self.stream)
                self.next = None
                reached = next(self._read(index), None)
                if reached is not None and reached[0] <= first:
                    self._waiting, self.next = reached, reached[0]
                    return
            target = index.key_before(target)
        self.restart()

    def _seek(self, index: PacketIndex, target: int, by_place: bool) -> None:
        place = int(index.position[target, 0])
        if by_place and place >= 0:
            self.container.seek(place, stream=self.stream, unsupported_byte_offset=True)
        else:
            self.container.seek(index.stamp(target), stream=self.stream)

    def restart(self) -> None:
        """Stand before the first packet."""
        self.container.close()
        self._open()
        self.next = 0


def _opened(recording: Recording, options: dict[str, str] | None = None) -> InputContainer:
    # "file:" keeps names such as "a:b.mp4" from being read as a protocol.
    return av.open(
        f"file:{recording.path.absolute()}" if recording.is_whole else recording.open(),
        mode="r",
        options={"protocol_whitelist": "file", **(options or {})},
        metadata_errors="ignore",
    )
