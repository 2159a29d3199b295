"""The web page of vidllm, as `python app.py` and hosted spaces start it; see `vidllm/demo`."""

import sys

from vidllm.demo import main

if __name__ == "__main__":
    sys.exit(main())
