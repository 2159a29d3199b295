"""The PyAV reader: list every packet without decoding, then decode only what is asked for.

A frame is reached from the last key frame that stands before it both in the file and on the
screen, which is also right for the leading frames of an open GOP. Pictures that no other picture
refers to are skipped on the way. Where decoding fails, the stretch is decoded again picture by
picture, and everything from the fault to the next key frame counts as lost: a decoder's guess at
a picture is not passed off as the picture.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from vidllm.errors import InputError
from vidllm.progress import Listener, check

from .demuxer import Source
from .display import SIZES_NOTE, display_matrix, frame_notes, upright
from .integrity import cut_off, gif_images
from .packets import PacketIndex, index_from_table, list_packets
from .reader import T, Take
from .recordings import Recording
from .sample_table import overstated
from .timeline import timeline_of

Run = tuple[int, list[int]]  # packets: the key frame to start at, and those wanted
Shown = Callable[[int, VideoFrame], T]  # what is made of a packet's picture

# Each picture is drawn over the one before, whatever the container says about key frames.
_CUMULATIVE_CODECS = {"gif", "apng"}
# In H.264 a picture with nal_ref_idc 0 is never referred to; other codecs promise less.
_SKIPPABLE_CODECS = {"h264"}
_WORKERS = 8  # decoders side by side at most: each holds pictures of its own
# An MP4's table of samples is in memory once more for each decoder: so many packets in all copies.
_TABLES = 400_000
_WAITING = 16  # pictures that a decoder holds back at most
# Pictures are converted on the thread that decodes: threads of a converter's own take more CPU time
# than they save, and a forked process waits for ever for those that it did not inherit.
_ALONE: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}
_PROBE = 48  # pictures: B-frames show within so many, if a file has any


class PyAVReader:
    """Reads whatever FFmpeg reads.

    Raises:
        InputError: the file is no video, holds no video stream, or holds no frame.
    """

    listener: Listener | None = None

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._source = Source(recording)
        self._extra: list[Source] = []  # for runs side by side
        self._slow: Source | None = None
        self._told: dict[str, None] = {}  # a set that keeps its order
        self._kept: bool = False  # whether a frame waits for being collected
        self._matrices: dict[tuple[Any, ...], np.ndarray | None] = {}
        self._sizes: set[tuple[int, int]] = set()
        self._blank: set[int] = set()  # packets
        self.blank: set[int] = set()
        self._unlike: bool | None = None  # whether no two frames have the same time
        try:
            self._index = self._list()
            # AVI stores no presentation times; what FFmpeg makes up for them is in file order.
            in_order = bool((np.diff(self._index.pts) > 0).all())
            if self._source.container.format.name == "avi" and in_order:
                self._index.counted = self._index.counted or self._reorders()
            source = self._source
            self.timeline = timeline_of(
                recording,
                source.container,
                source.stream,
                self._index,
                source.size,
                source.notes,
            )
            source.next = None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        for source in (self._source, self._slow, *self._extra):
            if source is not None:
                source.container.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the pictures read so far are shown, one line each."""
        return tuple(self._told)

    def peek(self) -> None:
        """Look at the first picture, so that ``notes`` tell of it before anything is read."""
        source = Source(self._recording, threads=1)
        with source.container as container, contextlib.suppress(av.FFmpegError, IndexError):
            for frame in container.decode(source.stream):
                self._told.update(dict.fromkeys(frame_notes(frame)))
                return

    def _list(self) -> PacketIndex:
        stream = self._source.stream
        index = None
        cut = cut_off(self._recording)[0]
        if not cut:  # else only reading tells what is still there
            index = index_from_table(self._recording, self._source.container, stream)
        if index is None:
            self._source.restart()
            index = list_packets(self._recording, self._source.container, self._source.stream)
        self._source.next = None
        if not len(index.shown):
            why = overstated(self._recording)
            raise InputError(
                f"{self._recording.name} holds a video stream but not one frame"
                + (f" that can be read: {why}" if why else "")
            )
        if cut and self._source.container.format.name == "mpegts":
            index.faults.add(len(index.pts) - 1)  # its picture may be there in part, unmarked
        if stream.codec_context.name in _CUMULATIVE_CODECS:
            index.keys = index.keys[:1]
        if stream.codec_context.name == "gif":
            whole = gif_images(self._recording)
            if whole is not None:
                index.faults.update(range(whole, len(index.pts)))
        return index

    def _reorders(self) -> bool:
        """Whether the decoder gives pictures in another order than the file holds them."""
        source, times = Source(self._recording, threads=1), []
        with source.container:
            for _, packet in source.packets(self._index, 0, _PROBE):
                with contextlib.suppress(av.FFmpegError):
                    times += [frame.pts for frame in packet.decode() if frame.pts is not None]
        return times != sorted(times)

    def read(self, indices: list[int], take: Take[T]) -> dict[int, T]:
        """Decode frames (presentation indices); those that cannot be decoded are left out."""
        if self._index.counted:
            return self._count_through(set(indices), take)
        places = {int(self._index.shown[i]): i for i in self._with_alike(indices)}
        asked = set(indices)

        def begin(first: int) -> Shown[tuple[int, T | None]]:
            return self._in_order(places, asked, first, take)

        runs = _runs(self._index, sorted(places))
        copies = _TABLES // len(self._index.pts)
        workers = min(_processors(), _WORKERS, len(runs) // 2, 1 + copies)
        found: dict[int, tuple[int, T | None]] = {}
        if workers > 1:
            for part in self._run_together(runs, begin, workers):
                found.update(part)
        else:
            for run in runs:
                found.update(self._run(self._source, *run, begin(run[0])))
        for first, wanted in runs:
            if any(packet not in found for packet in wanted):
                found.update(self._run_slowly(first, wanted, begin(first)))
        self.blank |= {i for packet, i in places.items() if packet in self._blank}
        return {i: taken for i, taken in found.values() if taken is not None}

    def _with_alike(self, indices: list[int]) -> list[int]:
        """Frames with all others that have the same times: these are put in order together."""
        times = self.timeline.seconds
        if self._unlike is None:
            self._unlike = bool((np.diff(times) > 0).all())
        if self._unlike:
            return indices
        at = times[indices]
        first, after = np.searchsorted(times, at), np.searchsorted(times, at, side="right")
        return sorted({i for a, b in zip(first, after, strict=True) for i in range(a, b)})

    def _in_order(
        self, places: dict[int, int], asked: set[int], first: int, take: Take[T]
    ) -> Shown[tuple[int, T | None]]:
        """What is made of the pictures of a run: the index of each, and what is taken of it.

        Frames of the same time have the order in which the decoder gives them: their packets may
        have another one.
        """
        index, times, counts = self._index, self.timeline.seconds, dict[float, int]()

        def shown(packet: int, frame: VideoFrame) -> tuple[int, T | None]:
            at = places[packet]
            if not self._unlike:
                time = float(times[at])
                begin, after = np.searchsorted(times, time), np.searchsorted(times, time, "right")
                if after - begin > 1:
                    if time not in counts:  # those of an earlier run come before
                        earlier = index.shown[begin:after]
                        counts[time] = sum(index.start_of(int(n)) < first for n in earlier)
                    at = min(int(begin) + counts[time], int(after) - 1)
                    counts[time] += 1
            return at, take(at, self._picture(frame)) if at in asked else None

        return shown

    def _run_together(
        self, runs: list[Run], begin: Callable[[int], Shown[T]], workers: int
    ) -> Iterator[dict[int, T]]:
        """Runs side by side, each on one thread: threads within a decoder wait for each other."""
        sources: SimpleQueue[Source] = SimpleQueue()
        if not self._source.stream.codec_context.is_open:  # else it was set by an earlier read
            self._source.stream.codec_context.thread_count = 1
        while len(self._extra) < workers - 1:
            self._extra.append(Source(self._recording, threads=1))
        for source in (self._source, *self._extra[: workers - 1]):
            sources.put(source)

        def work(run: Run) -> dict[int, T]:
            source = sources.get()
            try:
                return self._run(source, *run, begin(run[0]))
            finally:
                sources.put(source)

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(work, runs)

    def _run(self, source: Source, first: int, wanted: list[int], shown: Shown[T]) -> dict[int, T]:
        """Decode from key frame ``first`` to the last wanted packet; nothing from a faulty run."""
        index, context = self._index, source.stream.codec_context
        if any(not index.sound(packet) for packet in wanted):
            return {}
        skippable = context.name in _SKIPPABLE_CODECS
        todo, found = set(wanted), dict[int, T]()
        frame: VideoFrame | None = None
        skipping = False
        try:
            for number, packet in source.packets(index, first, wanted[-1]):
                check(self.listener)
                context = source.stream.codec_context  # another one where the file was reopened
                if skippable and skipping != (number not in todo):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                frames = packet.decode()
                if number == wanted[-1]:
                    frames += context.decode(None)
                for frame in frames:
                    number = -1 if frame.pts is None else frame.pts
                    if frame.is_corrupt and number >= first:
                        return {}
                    if number in todo:
                        todo.discard(number)
                        found[number] = shown(number, frame)
                frames, frame = [], None  # none is held while the next is decoded
        except MemoryError:
            raise
        except av.FFmpegError:
            return {}
        finally:
            if skipping:
                context.skip_frame = "DEFAULT"
            context.flush_buffers()
        return found

    def _run_slowly(self, first: int, wanted: list[int], shown: Shown[T]) -> dict[int, T]:
        """The same on one thread, without skipping, from one key frame earlier, past faults."""
        if self._slow is None:
            self._slow = Source(self._recording, threads=1)
        index, context = self._index, self._slow.stream.codec_context
        start = index.key_before(first)
        todo, found, faults = set(wanted), dict[int, T](), set[int]()
        pictured = set[int]()
        frames: list[VideoFrame] = []
        for number, packet in self._slow.packets(index, start, wanted[-1]):
            check(self.listener)
            context = self._slow.stream.codec_context  # another one where it was reopened
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError:
                faults.add(number)
                frames = []
            if number == wanted[-1]:
                with contextlib.suppress(av.FFmpegError):
                    frames += context.decode(None)
            for frame in frames:
                number = -1 if frame.pts is None else frame.pts
                if number < 0 or index.pts[number] < index.pts[start]:
                    continue  # a leading frame whose own GOP was not decoded
                pictured.add(number)
                if frame.is_corrupt:
                    faults.add(number)
                elif number in todo:
                    found[number] = shown(number, frame)
        context.flush_buffers()
        sound = {n for n in todo if index.sound(n, faults)}
        self._blank |= sound - pictured
        return {n: taken for n, taken in found.items() if n in sound}

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """The frame as (H, W, 3) uint8 RGB, as it is to be shown; scaled where its size differs."""
        # Asking a frame for its side data keeps all of it in memory until garbage is collected (a
        # cycle in PyAV): once for frames that look alike.
        looks = (frame.rotation, frame.interlaced_frame, int(frame.color_trc))
        if looks not in self._matrices:
            self._told.update(dict.fromkeys(frame_notes(frame)))
            self._matrices[looks] = display_matrix(frame)
            self._kept = True
        elif self._kept:
            self._kept = False
            gc.collect(1)
        self._sizes.add((frame.width, frame.height))
        if len(self._sizes) > 1:
            self._told[SIZES_NOTE] = None
        height, width = self._source.size
        picture = frame.to_ndarray(format="rgb24", width=width, height=height, **_ALONE)
        return upright(picture, self._matrices[looks])

    def _count_through(self, indices: set[int], take: Take[T]) -> dict[int, T]:
        """Pictures whose packets have no times of their own are counted from the first on.

        Past a fault counting starts again at the next key frame, whose packet and picture have
        the same number (a closed GOP).
        """
        source, index = Source(self._recording), self._index
        context = source.stream.codec_context
        faults = set(index.faults)
        found: dict[int, T] = {}
        shown, past = 0, -1  # number of the next picture; the fault that was counted past
        with source.container:
            for number, packet in source.packets(index, 0, len(index.pts) - 1):
                check(self.listener)
                try:
                    frames = packet.decode()
                    if number == len(index.pts) - 1:
                        frames += context.decode(None)
                except av.FFmpegError:
                    faults.add(number)
                    continue
                for frame in frames:
                    if frame.pts is None:
                        continue
                    # Pictures wait to be put in order: a fault also reaches a few before it.
                    fault = max((f for f in faults if f - _WAITING <= frame.pts), default=-1)
                    sure = frame.key_frame and not frame.is_corrupt and frame.pts > fault
                    if fault > past and sure:
                        shown, past = frame.pts, fault
                    if shown in indices and fault <= past and not frame.is_corrupt:
                        found[shown] = take(shown, self._picture(frame))
                    shown += 1
                if shown > max(indices):
                    break
        return found


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _runs(index: PacketIndex, packets: list[int]) -> list[Run]:
    """Group wanted packets (ascending) into runs, each decoded from one key frame on."""
    runs: list[Run] = []
    for first, packet in sorted((index.start_of(packet), packet) for packet in packets):
        if runs and first <= runs[-1][1][-1]:
            runs[-1][1].append(packet)
            runs[-1][1].sort()
        else:
            runs.append((first, [packet]))
    return runs
