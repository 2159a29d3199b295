"""The web page of vidllm, as `python app.py` and hosted spaces start it; see `vidllm/demo`."""

import sys

from vidllm.cli.demo_command import main

if __name__ == "__main__":
    sys.exit(main())
