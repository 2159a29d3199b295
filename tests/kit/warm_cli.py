"""The command line as a process that has its imports behind it.

Most of what a command does is to import torch and transformers. A process of this module imports
them once and forks a child for every command; the child has its own arguments, folder, environment
and files, runs the same entry point, and ends as any process does.

``python warm_cli.py REQUESTS REPLIES``: file descriptors of the lines that ask and answer.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any, NoReturn

#: Seconds that a command may take.
LIMIT = 300


def _command(order: dict[str, Any]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(LIMIT)  # its default action ends the process
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for number, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["stdout"], os.O_WRONLY),
        (2, order["stderr"], os.O_WRONLY),
    ):
        file = os.open(name, mode)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["vidllm", *order["words"]]
    from vidllm.cli.main import main

    sys.exit(main())


def serve(requests: int, replies: int) -> None:
    from vidllm.cli.main import main
    from vidllm.cli.options import hide_bars

    main(["--version"])  # libraries are told to be quiet before they are imported
    hide_bars()
    import av  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from vidllm import VideoLLM  # noqa: F401

    gc.freeze()
    with os.fdopen(requests) as lines:
        for line in lines:
            child = os.fork()
            if child == 0:
                os.close(replies)
                _command(json.loads(line))
            _, status = os.waitpid(child, 0)
            os.write(replies, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
