"""A model, or adapters, pushed to the hub through huggingface_hub."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from vidllm.errors import InputError, VidllmError, WorkError
from vidllm.errors.bounds import short
from vidllm.models.engine import Engine
from vidllm.models.hub import is_hub_name, push_failure

from .engines import save_engine

_CARD = """---
library_name: vidllm
pipeline_tag: video-text-to-text
---

A video LLM, saved by vidllm:

```python
from vidllm import VideoLLM

vl = VideoLLM.from_pretrained({loading})
print(vl.ask("video.mp4", "When does it start?"))
```
"""


def push_engine(
    engine: Engine,
    repo: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    message: str,
) -> str:
    """See `VideoLLM.push_to_hub`."""
    if not isinstance(repo, str) or not is_hub_name(repo):
        raise InputError(f"a place on the hub is OWNER/NAME, not {short(repo)}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WorkError(
            f"'{repo}' cannot be pushed: HF_HUB_OFFLINE is set, so the hub is not asked"
        )
    from huggingface_hub import HfApi

    with TemporaryDirectory() as place:
        save_engine(engine, place)
        card = Path(place) / "README.md"
        if not card.exists():
            adapters = not (Path(place) / "config.json").exists()
            loading = f'adapter="{repo}"' if adapters else f'"{repo}"'
            card.write_text(_CARD.format(loading=loading), encoding="utf-8")
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            made = api.upload_folder(
                folder_path=place, repo_id=repo, revision=revision, commit_message=message
            )
        except VidllmError:
            raise
        except Exception as error:  # of the client, of the network, or of the hub
            raise push_failure(repo, error) from error
    return str(made.commit_url)
