"""Ask a page of vidllm from Python: what `vidllm demo` serves, by its named endpoints.

    vidllm demo                                        # in another terminal
    python docs/demo_client.py http://127.0.0.1:7860 weights/samples/red-star.mp4 "when does …?"

Needs gradio_client, which comes with `pip install 'vidllm[demo]'` or alone.
"""

from __future__ import annotations

import argparse
import json
import sys

from gradio_client import Client, handle_file


def main() -> int:
    """Ask a question, with the page's method and with every token; print both as people read it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of the page")
    parser.add_argument("video", help="file to upload")
    parser.add_argument("question")
    parser.add_argument("--keep", type=float, help="share of the video tokens that stays")
    given = parser.parse_args()
    page = Client(given.url, verbose=False)
    video = handle_file(given.video)
    answer = page.predict(video, given.question, keep=given.keep, api_name="/ask")
    kept, full = (answer["receipt"][name] for name in ("tokens_kept", "tokens_full"))
    print(f"{answer['text']}   ({kept} of {full} video tokens)")
    both = page.predict(video, given.question, keep=given.keep, api_name="/compare")
    print(f"every token: {both['full']['text']}   (agrees: {both['agree']})")
    print(json.dumps({"spans": answer["spans"], "agree": both["agree"]}))
    page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
