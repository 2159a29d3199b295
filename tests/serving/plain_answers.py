"""What vLLM answers without us: ``python plain_answers.py FOLDER [CHUNK]``, answers as JSON.

With a chunk, requests are asked one by one and prefilled in chunks of so many tokens.
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
    chunk = [int(number) for number in sys.argv[2:]]
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": chunk[0]} if chunk else {}
    served = Served(Path(sys.argv[1]), **sizes)
    requests = [Request(**facts) for facts in json.load(sys.stdin)]
    prompts = [request.prompt() for request in requests]
    batches = [[prompt] for prompt in prompts] if chunk else [prompts]
    answers = [answer for batch in batches for answer in served.answers(batch)]
    sys.stdout.write("\n" + json.dumps([asdict(answer) for answer in answers]) + "\n")


if __name__ == "__main__":
    main()
