"""`vidllm demo`, and the same for `python app.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vidllm.demo.settings import Settings
from vidllm.errors import VidllmError
from vidllm.errors.bounds import guard_command

from .options import Debug, debugging, hide_bars, option, say

app = typer.Typer(add_completion=False)

_MODEL, _LIMITS, _SERVER = "The model", "What visitors may do", "The server"


@app.command()
def demo(
    model: Annotated[str | None, option(_MODEL, help="Shipped name, folder or hub name.")] = None,
    compressor: Annotated[
        str | None, option(_MODEL, help="Token reducers that the page begins with.")
    ] = None,
    keep: Annotated[
        float | None, option(_MODEL, help="Share of the video tokens that it begins with.")
    ] = None,
    frames: Annotated[int | None, option(_MODEL, help="Frames that it begins with.")] = None,
    device: Annotated[str | None, option(_MODEL, help="cpu, cuda, …; the best if absent.")] = None,
    dtype: Annotated[str | None, option(_MODEL, help="Number type: auto, float32, …")] = None,
    attn: Annotated[str | None, option(_MODEL, help="Attention: sdpa, eager, …")] = None,
    max_upload_mb: Annotated[
        float, option(_LIMITS, help="Largest file, in MB.")
    ] = Settings.max_upload_mb,
    max_seconds: Annotated[float, option(_LIMITS, help="Longest video.")] = Settings.max_seconds,
    max_pixels: Annotated[
        int, option(_LIMITS, help="Pixels of a frame at most.")
    ] = Settings.max_pixels,
    max_frames: Annotated[
        int, option(_LIMITS, help="Frames sampled at most.")
    ] = Settings.max_frames,
    max_memory_mb: Annotated[
        float, option(_LIMITS, help="Frames of all visitors held at once, in MB.")
    ] = Settings.max_memory_mb,
    waiting: Annotated[
        int, option(_LIMITS, help="Runs that may wait for the model.")
    ] = Settings.waiting,
    max_question: Annotated[
        int, option(_LIMITS, help="Characters of a question at most.")
    ] = Settings.max_question,
    max_uploads_mb: Annotated[
        float, option(_LIMITS, help="Files of all visitors together, in MB.")
    ] = Settings.max_uploads_mb,
    max_idle_minutes: Annotated[
        float, option(_LIMITS, help="How long what a visitor left stays who has no page open.")
    ] = Settings.max_idle_minutes,
    allow_host: Annotated[
        list[str] | None,
        option(
            _SERVER,
            help="Name under which the page is reached, such as that of a proxy; may come often.",
        ),
    ] = None,
    host: Annotated[
        str,
        option(_SERVER, help="Address to listen on; 0.0.0.0 for all.", envvar="GRADIO_SERVER_NAME"),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        option(_SERVER, min=1, max=65535, help="Port to listen on.", envvar="GRADIO_SERVER_PORT"),
    ] = 7860,
    root_path: Annotated[
        str | None,
        option(
            _SERVER,
            help="Path prefix under which a proxy shows the page, such as /vidllm.",
            envvar="GRADIO_ROOT_PATH",
        ),
    ] = None,
    share: Annotated[bool, option(_SERVER, "--share", help="Also open a public link.")] = False,
    debug: Debug = False,
) -> None:
    """Open the web page: a video, a question, the answer with its times."""
    name: str | None = None
    if model is not None:
        from vidllm.models.shipped import find_model

        name = find_model(model)
    if name is None or Path(name).is_dir():
        hide_bars()
    settings = Settings(
        model=name,
        compressor=compressor,
        keep=keep,
        device=device,
        dtype=dtype,
        attn=attn,
        frames=frames,
        max_upload_mb=max_upload_mb,
        max_seconds=max_seconds,
        max_pixels=max_pixels,
        max_frames=max_frames,
        max_memory_mb=max_memory_mb,
        waiting=waiting,
        max_question=max_question,
        max_uploads_mb=max_uploads_mb,
        max_idle_minutes=max_idle_minutes,
        hosts=tuple(allow_host or ()),
    )
    from vidllm.demo.launch import launch

    launch(settings, host=host, port=port, root_path=root_path, share=share, ready=say)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; what `app.py` calls."""
    command = guard_command(typer.main.get_command(app))
    try:
        command.main(args=arguments, prog_name="app.py", standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    except VidllmError as error:
        if debugging():
            raise
        say(f"vidllm: {' '.join(str(error).split())}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
