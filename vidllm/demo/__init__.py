"""The web page: drop a video, ask, click the time in the answer, see which tokens were kept.

`vidllm demo` and `app.py` show the same page. It calls the Python API and adds nothing to it:
drawing stands here, everything that computes stands beside the API in `vidllm.ask`
(`calls`, `comparing`, `moments`, `serving`, `sharing`). Gradio is imported when the page is built.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("gradio") is None:
    raise ModuleNotFoundError(
        "the web page needs gradio: pip install 'vidllm[demo]'", name="gradio"
    )
