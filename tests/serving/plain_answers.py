"""What vLLM answers without us: ``python plain_answers.py FOLDER``, answers as JSON.

Standard input has the requests, as JSON; vLLM speaks before the last line of standard output.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tiny_engine import Request, Served


def main() -> None:
    assert "VIDLLM_COMPRESSOR" not in os.environ
    served = Served(Path(sys.argv[1]))
    requests = [Request(**facts) for facts in json.load(sys.stdin)]
    answers = served.answers([request.prompt() for request in requests])
    sys.stdout.write("\n" + json.dumps([asdict(answer) for answer in answers]) + "\n")


if __name__ == "__main__":
    main()
