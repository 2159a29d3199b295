"""Load the model, build the page, and serve it until it is stopped."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vidllm.errors import VidllmError, WorkError
from vidllm.models.shipped import sample_videos
from vidllm.progress import StopSignal

from .settings import Settings
from .uploads import FULL, Uploads

if TYPE_CHECKING:
    from .host import Host

#: Events that the queue holds for each run that may wait: looks and clicks are many.
_EVENTS_EACH = 64
#: Seconds between two looks for events. Gradio looks a thousand times a second, which takes a tenth
#: of a core from a page that nobody uses.
_REST = 0.02


def launch(
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    root_path: str | None = None,
    share: bool = False,
    ready: Callable[[str], None] = print,
    block: bool = True,
) -> Any:
    """Serve the page.

    Args:
        settings: of the page. host, port: where to listen; port None for a free one.
        root_path: the path prefix under which a proxy shows the page.
        share: also open a public link. ready: told the address.
        block: wait until the server is stopped; otherwise its `gradio.Blocks` comes back.

    Raises:
        InputError: a model or setting that is wrong.
        WorkError: weights that cannot be loaded, or a port that is taken.
    """
    # Before gradio is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    settings = Settings() if settings is None else settings
    llm = settings.load()
    uploads = Uploads(settings.uploads_bytes)
    atexit.register(uploads.clear)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    from starlette.middleware import Middleware

    from .gate import Gate
    from .host import Host
    from .page import build
    from .theme import CSS, theme

    logging.getLogger("httpx").setLevel(logging.WARNING)
    served = Host(llm, settings)
    gate = Gate(served, uploads, (host,))
    try:
        page: Any = build(served)
        gate.page = page
        # Who may not wait for the model is told so by the events themselves; this is only against
        # floods. Nothing goes round the queue.
        page.queue(max_size=_EVENTS_EACH * settings.waiting, api_open=False)
        page._queue.sleep_when_free = _REST
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            root_path=root_path,
            max_file_size=settings.upload_bytes,
            allowed_paths=sorted({str(video.parent) for video in sample_videos()}),
            theme=theme(),
            css=CSS,
            footer_links=["api", "gradio", "settings"],
            quiet=True,
            show_error=False,
            enable_monitoring=False,
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(gate.middleware)]},
            prevent_thread_lock=True,
        )
    except OSError as error:
        uploads.clear()
        if error.errno in FULL:
            raise uploads.full() from error
        raise WorkError(f"port {port} cannot be used: {error}; give --port another") from error
    if page.share_url:
        gate.named.add(page.share_url.split("//")[-1].strip("/").lower())
    uploads.settle()
    if served.shipped and served.first_sample() is not None:
        threading.Thread(target=_open, args=(served,), daemon=True).start()
    ended = threading.Event()
    threading.Thread(target=_sweep, args=(served, uploads, ended), daemon=True).start()
    ready(f"serving on {url} (Ctrl-C stops)")
    if block:
        _wait()
        served.close()
        page.close(verbose=False)
        ended.set()
        uploads.clear()
    return page


def _open(host: Host) -> None:
    """Make the answer that the page opens with, before anybody comes."""
    with suppress(VidllmError):  # who comes is told
        host.opening(StopSignal())


def _sweep(host: Host, uploads: Uploads, ended: threading.Event) -> None:
    """Let go of what visitors left who never said that they went."""
    idle = 60 * host.settings.max_idle_minutes
    while not ended.wait(min(60.0, idle / 4)):
        host.sessions.end_idle(idle)
        uploads.sweep(host.sessions.files, idle)


def _wait() -> None:
    """Until Ctrl-C, or until the process is told to end."""
    ended = threading.Event()
    with suppress(ValueError):  # only the main thread takes signals
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with suppress(KeyboardInterrupt):
        while not ended.wait(1.0):
            pass
