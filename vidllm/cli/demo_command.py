"""`vidllm demo`, and the same for `python app.py`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vidllm.demo.settings import Settings
from vidllm.errors import VidllmError
from vidllm.errors.bounds import guard_command

from .options import Debug, debugging, hide_bars, option, options_of, say

app = typer.Typer(add_completion=False)

_SERVER = "The server"


@app.command()
@partial(options_of, Settings, first=True)
def demo(
    settings: Settings,
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
    if settings.recipe is not None and settings.model is None:
        from vidllm.recipes import get_recipe
        from vidllm.recipes.models import ships

        recipe = get_recipe(settings.recipe)
        settings = replace(settings, model=recipe.weights if ships(recipe) else None)
    name, model = settings.named(), settings.model
    if name is not None:
        from vidllm.models.shipped import find_model

        name = find_model(name)
        model = None if model is None else name
    if name is None or Path(name).is_dir():
        hide_bars()
    settings = replace(settings, model=model, hosts=tuple(allow_host or ()))
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
