"""``vidllm serve``: vLLM's own OpenAI-compatible server, with our methods in it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from vidllm.errors import InputError
from vidllm.errors.paths import is_folder
from vidllm.models.model_options import PANEL, Revision
from vidllm.models.tuned import find_tuned

from .options import Debug, option, say

app = typer.Typer(add_completion=False)

_SERVER = "The server"
#: Options of the commands that run transformers, and why they are none of vLLM's.
_NOT_VLLM = {
    "--adapter": "vLLM takes no adapters of vidllm train hub; serve the model that they stand "
    "beside, or ask without vLLM (vidllm chat, vidllm demo)",
    "--device-map": "vLLM spreads a model by --tensor-parallel-size N",
}
#: vLLM's command `vllm serve`, in a process that has nothing of this one.
_COMMAND = "vidllm.models.serving.server"
#: vLLM's word for: clients may say how their videos are read, and so what work they cause.
_TRUST = "--trust-request-mm-kwargs"
#: Hosts that nobody beside this machine reaches.
_OWN = ("127.0.0.1", "localhost", "::1")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": ["-h", "--help"],
    }
)
def serve(
    ctx: typer.Context,
    model: Annotated[str, option(PANEL, help="Folder or hub name, of a family that is served.")],
    compressor: Annotated[
        str,
        option("Fewer tokens", help="Method or chain; 'none' leaves it to requests."),
    ] = "none",
    keep: Annotated[
        float | None, option("Fewer tokens", help="Share of every video's tokens that is kept.")
    ] = None,
    host: Annotated[
        str, option(_SERVER, help="Address to listen on; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[int, option(_SERVER, min=1, max=65535, help="Port to listen on.")] = 8000,
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Serve a model with vLLM, its videos compressed; other options go to vLLM as they are."""
    for name in (word.partition("=")[0] for word in ctx.args):
        if name in _NOT_VLLM:
            raise InputError(f"{name} does not go here: {_NOT_VLLM[name]}")
    if find_tuned(model) is not None:
        raise InputError(f"--model holds adapters: {_NOT_VLLM['--adapter']}")
    if revision is not None and is_folder(model):
        raise InputError("--revision names a version of a model on the hub, and --model a folder")
    if find_spec("vllm") is None:
        raise InputError("serve needs vllm: pip install 'vidllm[vllm]' (docs/serving.md)")
    from vidllm.errors.bounds import check
    from vidllm.models.serving.choice import served
    from vidllm.models.serving.plugin import check_model, choose
    from vidllm.models.shipped import find_model

    if keep is not None:
        check("keep", keep)
    choice = served(compressor, keep)
    name = find_model(model)
    check_model(name)
    for note in choice.method.notes():
        say(note)
    trusted = [_TRUST] if host in _OWN and _TRUST not in ctx.args else []
    if not trusted and _TRUST not in ctx.args:
        say(f"requests may not name a method or the seconds of frames: {_TRUST} lets them")
    choose(choice)
    command = [sys.executable, "-m", _COMMAND, "serve", name]
    command += [] if revision is None else ["--revision", revision]
    command += ["--host", host, "--port", str(port), *trusted, *ctx.args]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)
