"""The PyAV reader: list every packet without decoding, then decode only what is asked for.

A frame is reached from the last key frame that stands before it both in the file and on the
screen, which is also right for the leading frames of an open GOP. Pictures that no other picture
refers to are skipped on the way. Where decoding fails, the stretch is decoded again picture by
picture, and everything from the fault to the next key frame counts as lost: a decoder's guess at
a picture is not passed off as the picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container.input import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidllm.errors import InputError
from vidllm.packets import PacketIndex, cut_off, find_holes, list_packets
from vidllm.readers import Timeline

# These demuxers turn text into pictures or open further files that the text names.
_REFUSED_FORMATS = {"tty", "concat", "hls", "dash", "sdp", "rtsp", "imf"}
# Each picture is drawn over the one before, whatever the container says about key frames.
_CUMULATIVE_CODECS = {"gif", "apng"}
# In H.264 a picture with nal_ref_idc 0 is never referred to; other codecs promise less.
_SKIPPABLE_CODECS = {"h264"}
_READ_ON = 48  # packets: reading on over so many costs less than a seek


class PyAVReader:
    """Reads whatever FFmpeg reads.

    Raises:
        InputError: the file is no video, holds no video stream, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = _Source(path)
        self._slow: _Source | None = None
        try:
            self._index = self._list()
            self.timeline = self._timeline()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self._source.container.close()
        if self._slow is not None:
            self._slow.container.close()

    def _list(self) -> PacketIndex:
        stream = self._source.stream
        index = list_packets(self._source.container, stream)
        if not len(index.shown):
            raise InputError(f"{self._path.name} holds a video stream but not one frame")
        if stream.codec_context.name in _CUMULATIVE_CODECS:
            index.keys = index.keys[:1]
        self._source.next = None
        return index

    def _timeline(self) -> Timeline:
        index, stream, container = self._index, self._source.stream, self._source.container
        base = stream.time_base or 1 / av.time_base
        notes: list[str] = []
        if index.timed:
            ticks = index.pts[index.shown]
            seconds = (ticks - ticks[0]) * (base.numerator / base.denominator)
        else:
            rate = stream.average_rate or stream.guessed_rate or 25
            seconds = np.arange(len(index.shown)) / float(rate)
            notes.append(f"the file has no timestamps: {float(rate):g} frames a second assumed")
        last = index.duration[index.shown[-1]] * float(base) if index.timed else 0.0
        if not last > 0:
            last = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
            if not last > 0:
                last = 1 / float(stream.average_rate or 25)
        end = duration = float(seconds[-1] + last)
        cut = cut_off(self._path)
        if cut:
            if stream.duration:
                duration = max(end, float(stream.duration * base))
            elif container.duration:
                first = float(index.pts[index.shown[0]] * base) if index.timed else 0.0
                duration = max(end, container.duration / av.time_base - first)
            notes.append(f"the file is cut off after {end:.1f} of {duration:.1f} seconds")
        holes = np.zeros((0, 2))
        if index.timed:
            holes = find_holes(self._source.container, index, seconds)
            if len(holes):
                self._source.next = None
                notes.append(f"data is missing in the file in {len(holes)} places")
        context = stream.codec_context
        return Timeline(
            seconds, duration, end, (context.height, context.width), holes, cut, tuple(notes)
        )

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Decode frames (presentation indices); those that cannot be decoded are left out."""
        if not self._index.timed:
            return self._count_through(set(indices))
        packets = sorted(int(self._index.shown[i]) for i in indices)
        pictures: dict[int, np.ndarray] = {}
        for first, wanted in _runs(self._index, packets):
            found = self._run(first, wanted)
            if len(found) < len(wanted):
                found = self._run_slowly(first, wanted)
            pictures.update(found)
        return {
            i: pictures[int(self._index.shown[i])]
            for i in indices
            if int(self._index.shown[i]) in pictures
        }

    def _run(self, first: int, wanted: list[int]) -> dict[int, np.ndarray]:
        """Decode from key frame ``first`` to the last wanted packet; nothing from a faulty run."""
        index, context = self._index, self._source.stream.codec_context
        if any(not index.sound(packet) for packet in wanted):
            return {}
        skippable = context.name in _SKIPPABLE_CODECS
        todo, found = set(wanted), {}
        skipping = False
        try:
            for number, packet in self._source.packets(index, first, wanted[-1]):
                if skippable and skipping != (number not in todo):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                frames = packet.decode()
                if number == wanted[-1]:
                    frames += context.decode(None)
                for frame in frames:
                    if frame.is_corrupt and index.number(frame.pts) >= first:
                        return {}
                    number = index.number(frame.pts)
                    if number in todo:
                        todo.discard(number)
                        found[number] = _picture(frame, self._source.size)
        except av.FFmpegError:
            return {}
        finally:
            if skipping:
                context.skip_frame = "DEFAULT"
            context.flush_buffers()
        return found

    def _run_slowly(self, first: int, wanted: list[int]) -> dict[int, np.ndarray]:
        """The same on one thread, without skipping, from one key frame earlier, past faults."""
        if self._slow is None:
            self._slow = _Source(self._path, threads=1)
        index, context = self._index, self._slow.stream.codec_context
        start = index.key_before(first)
        todo, found, faults = set(wanted), {}, set()
        frames: list[VideoFrame] = []
        for number, packet in self._slow.packets(index, start, wanted[-1]):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                faults.add(number)
                frames = []
            if number == wanted[-1]:
                with contextlib.suppress(av.FFmpegError):
                    frames += context.decode(None)
            for frame in frames:
                number = index.number(frame.pts)
                if number < 0 or index.pts[number] < index.pts[start]:
                    continue  # a leading frame whose own GOP was not decoded
                if frame.is_corrupt:
                    faults.add(number)
                elif number in todo:
                    found[number] = _picture(frame, self._source.size)
        context.flush_buffers()
        return {n: picture for n, picture in found.items() if index.sound(n, faults)}

    def _count_through(self, indices: set[int]) -> dict[int, np.ndarray]:
        """Without timestamps frames are told apart by counting them from the first one on."""
        source = _Source(self._path)
        found: dict[int, np.ndarray] = {}
        count, broken = 0, False
        with source.container:
            packets = source.container.demux(source.stream)
            while count <= max(indices):
                try:
                    packet = next(packets)
                    frames = packet.decode()
                except StopIteration:
                    break
                except av.FFmpegError:
                    count, broken = count + 1, True
                    continue
                for frame in frames:
                    broken = frame.is_corrupt or (broken and not frame.key_frame)
                    if count in indices and not broken:
                        found[count] = _picture(frame, self._source.size)
                    count += 1
        return found


class _Source:
    """One open file and where its demuxer stands."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        self._path, self._threads = path, threads
        self.next: int | None = 0  # number of the packet that comes next, None if unknown
        self._open()

    def _open(self) -> None:
        try:
            # "file:" keeps names such as "a:b.mp4" from being read as a protocol.
            self.container: InputContainer = av.open(
                f"file:{self._path.absolute()}",
                options={"protocol_whitelist": "file"},
                metadata_errors="ignore",
            )
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
        self._waiting: tuple[int, Packet] | None = None

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
        for other in self.container.streams:
            if other.index != stream.index:
                other.discard = "all"
        if self._threads:
            stream.codec_context.thread_count = self._threads
        else:
            stream.thread_type = "AUTO"
        return stream

    def packets(self, index: PacketIndex, first: int, last: int) -> Iterator[tuple[int, Packet]]:
        """Packets ``first`` to ``last`` with their numbers, from wherever the file stands."""
        if self.next is None or not self.next <= first <= self.next + _READ_ON:
            self._go_to(index, first)
        for number, packet in self._read(index):
            if number >= first:
                yield number, packet
            if number >= last:
                return

    def _read(self, index: PacketIndex) -> Iterator[tuple[int, Packet]]:
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
            number = index.number(packet.pts) if packet.size else -1
            if number >= 0:
                self.next = number + 1
                yield number, packet
        self.next = None

    def _go_to(self, index: PacketIndex, first: int) -> None:
        """Stand at or before packet ``first``: by seeking, or from the start where that fails."""
        target = first
        for _ in range(3):
            with contextlib.suppress(av.FFmpegError, OSError):
                self.container.seek(int(index.pts[target]), stream=self.stream)
                self._demux = self.container.demux(self.stream)
                reached = next(self._read(index), None)
                if reached is not None and reached[0] <= first:
                    self._waiting, self.next = reached, reached[0]
                    return
            target = index.key_before(target)
        self.container.close()
        self._open()
        self.next = 0


def _runs(index: PacketIndex, packets: list[int]) -> list[tuple[int, list[int]]]:
    """Group wanted packets (ascending) into runs, each decoded from one key frame on."""
    runs: list[tuple[int, list[int]]] = []
    for first, packet in sorted((index.start_of(packet), packet) for packet in packets):
        if runs and first <= runs[-1][1][-1]:
            runs[-1][1].append(packet)
            runs[-1][1].sort()
        else:
            runs.append((first, [packet]))
    return runs


def _picture(frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The frame as (H, W, 3) uint8 RGB, upright; a frame of another size is scaled to ``size``."""
    height, width = size
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    turns = round(frame.rotation / 90) % 4
    return np.rot90(picture, turns) if turns else picture
