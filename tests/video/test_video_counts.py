"""Counts that a file states: none of them is believed before it is compared with what there is."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from pathlib import Path

import av
import pytest
from videos import overwrite, write_video

from vidllm.errors import InputError
from vidllm.video import load_video
from vidllm.video.recordings import Recording
from vidllm.video.sample_table import overstated

# Each file is opened in one child that may take little more memory than a healthy one of them.
READ_ALL = """
import resource, sys
from vidllm.errors import VidllmError
from vidllm.video import load_video
def clip(path):
    try:
        return f"{len(load_video(path, frames=4))} frames"
    except VidllmError as error:
        return str(error).replace(chr(10), " BREAK ")
clip(sys.argv[1])
most = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = most()
for path in sys.argv[1:]:
    print(path.rsplit("/", 1)[-1], clip(path))
print("grown", most() - before)
"""
MOST = (2**27, 2**31 - 1, 2**32 - 1)
TABLES = {  # box of an MP4 file: bytes behind its name at which counts and the like stand
    "stsz": (8, 12), "stsc": (8, 12, 16), "stco": (8,), "elst": (8, 12, 16), "stss": (8, 12),
    "stts": (8, 12), "ctts": (8, 12), "mdhd": (16, 20), "mvhd": (16, 20), "stsd": (8,),
}  # fmt: skip
FRAGMENTS = {
    "trun": (8, 12, 16, 20), "tfhd": (8, 12, 16, 20), "tfdt": (8, 12), "trex": (12, 16, 20),
    "tfra": (8, 16, 20),
}  # fmt: skip
CHUNKS = {"idx1": (4, 16, 20), "strh": (4, 28, 32, 36), "avih": (20, 24), "strf": (4,)}


def changed(folder: Path) -> list[Path]:
    """A healthy file, and files of several kinds with one count that cannot be."""
    size = (64, 48)
    source = write_video(folder / "a.mp4", 60, size=size, options={"x264-params": "bframes=3"})
    cut_up = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    fragments = write_video(folder / "f.mp4", 60, size=size, container_options=cut_up)
    avi = write_video(folder / "a.avi", 60, size=size, codec="mpeg4")
    mkv = write_video(folder / "a.mkv", 60, size=size)
    made = [source]
    kinds = ((source, TABLES, ">I"), (fragments, FRAGMENTS, ">I"), (avi, CHUNKS, "<I"))
    for given, boxes, form in kinds:
        for box, places in boxes.items():
            for at in places:
                for count in MOST:
                    name = folder / f"{box}-{at}-{count}{given.suffix}"
                    made.append(overwrite(given, name, box.encode(), at, struct.pack(form, count)))
    for count in MOST[:2]:  # samples of one size each, and the other tables agree
        name = folder / f"constant-{count}.mp4"
        overwrite(source, name, b"stsz", 8, struct.pack(">II", 1, count))
        overwrite(name, name, b"stts", 8, struct.pack(">II", 1, count))
        made.append(overwrite(name, name, b"stsc", 8, struct.pack(">IIII", 1, 1, count, 1)))
    for element in (b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\x63\xa2"):
        name = folder / f"{element.hex()}.mkv"
        huge = b"\x01\0\0\x7f\xff\xff\xff\xff"
        made.append(overwrite(mkv, name, element, len(element), huge))
    return made


def test_no_count_costs_memory(tmp_path: Path) -> None:
    files = changed(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *lines, grown = run.stdout.splitlines()
    assert len(lines) == len(files) and lines[0] == "a.mp4 4 frames"
    assert not any("BREAK" in line for line in lines)
    assert int(grown.split()[1]) < 64 * 2**20


def test_a_table_of_more_entries_than_the_file_holds_is_named(tmp_path: Path) -> None:
    options = {"x264-params": "bframes=3"}
    source = write_video(tmp_path / "a.mp4", 12, size=(64, 48), options=options)
    assert overstated(Recording(source)) is None
    for box, at in (("stts", 8), ("ctts", 8), ("stsc", 8), ("stco", 8), ("stsz", 12)):
        for count in MOST:
            path = overwrite(source, tmp_path / "b.mp4", box.encode(), at, struct.pack(">I", count))
            told = f'its table "{box}" claims {count} entries, which is more than the file can hold'
            assert overstated(Recording(path)) == told
    constant = struct.pack(">II", 1, 2**31 - 1)  # samples of one byte each
    path = overwrite(source, tmp_path / "b.mp4", b"stsz", 8, constant)
    with pytest.raises(InputError, match=r'not one frame .*"stsz" claims 2147483647 entries'):
        load_video(path, frames=2)
    path = overwrite(source, tmp_path / "b.mp4", b"stts", 8, struct.pack(">I", 2**31 - 1))
    with pytest.raises(InputError, match='"stts" claims 2147483647 entries'):
        load_video(path, frames=2)


@pytest.mark.parametrize("side", [4096, 8192])
def test_a_clip_of_huge_pictures_takes_its_limit_and_a_decoder(side: int, tmp_path: Path) -> None:
    """A small GIF: its pictures are never there beside the clip, which is filled as they come."""
    path, frames = tmp_path / "huge.gif", 4 if side == 8192 else 12
    with av.open(str(path), "w") as out:
        stream = out.add_stream("gif", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "gray"
        frame = av.VideoFrame(side, side, "gray")
        for number in range(frames):
            for plane in frame.planes:
                plane.update(bytes([20 * number]) * plane.buffer_size)
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    code = (
        "import resource, sys; from vidllm.video import Limits, load_video\n"
        "most = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_video(sys.argv[1], frames=1, limits=Limits(max_pixels=2**27)); one = most()\n"
        "clip = load_video(sys.argv[1], frames=99, limits=Limits(max_pixels=2**27))\n"
        "print(clip.frames.nbytes, one, most())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    clip, one, most = map(int, run.stdout.split())
    assert clip == frames * side * side * 3
    # Pictures and the stack at once would be another clip, or more: decoders have four channels.
    assert most - one < 1.2 * clip + (4 * side * side if side == 8192 else 0)
