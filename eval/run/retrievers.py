"""A dual encoder behind the seam of a run: captions and clips as vectors (`RetrievalAsker`).

The receipt of a clip has the FLOPs of the vision tower, counted while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidllm.compressors import build
from vidllm.models.cost.flops import counted
from vidllm.models.retrieval.retriever import Embedding, Retriever, check_inside

from ..tasks.base import Item, Response
from .answer_costs import costs_of
from .journal import Prediction
from .run_settings import Setting, no_own
from .vectors import write_vector

if TYPE_CHECKING:
    from vidllm.video import VideoClip


def own_merging(retriever: Retriever) -> Callable[[float | None], Setting]:
    """The merging that a dual encoder was trained with, at a share."""

    if retriever.compressor.name == "none":
        return no_own

    def setting(keep: float | None) -> Setting:
        method = retriever.own_compressor(keep)
        spec = "none" if method.name == "none" else str(retriever.model.config.compressors)
        return Setting(spec.replace(",", "+"), float(method.keep or 1.0), method)

    return setting


class RetrievalAsker:
    """Answers a retrieval task's items: captions and clips as vectors (see `asking.Asker`).

    Raises:
        InputError: a setting whose compressor does not merge inside a tower.
    """

    def __init__(self, retriever: Retriever, settings: Sequence[Setting], *, name: str) -> None:
        self.retriever, self.name = retriever, name
        self._flops: dict[tuple[str, int], float] = {}
        self._settings = tuple(settings)
        for setting in settings:
            check_inside(setting.method)

    def settings(self) -> Sequence[Setting]:
        """What every item is asked under."""
        return self._settings

    def about(self) -> dict[str, Any]:
        """What the vectors depend on."""
        from .ask_model import device_name, weights_mark

        weight = next(self.retriever.model.parameters())
        return {
            "model": self.name,
            "weights": weights_mark(self.retriever.model),
            "max_new_tokens": 0,
            "times": False,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "device_name": device_name(weight.device),
        }

    def ask(self, clip: VideoClip, items: Sequence[Item], setting: Setting) -> list[Prediction]:
        """A vector each: of the caption (kind "text"), or of the clip."""
        found: list[Prediction] = []
        seen: Embedding | None = None
        videos = sum(item.kind != "text" for item in items)  # that one embedding serves
        for item in items:
            if item.kind == "text":
                said = self.retriever.embed_text(item.prompt)
                found.append(Prediction(Response(raw=write_vector(said), duration=clip.duration)))
                continue
            seen = self._embedded(clip, setting) if seen is None else seen
            response = Response(raw=write_vector(seen.vector), duration=clip.duration)
            cost = costs_of([seen.receipt] * videos)[0]
            found.append(Prediction(response, seen.kept.as_dict(), cost, len(clip)))
        return found

    def _embedded(self, clip: VideoClip, setting: Setting) -> Embedding:
        """A clip, with the FLOPs of the tower, which are those of any other clip as long."""
        method = setting.method or build("none")
        found = self.retriever.embed_video(clip, method)
        key = (setting.label, len(clip))
        if key not in self._flops:
            self._flops[key] = counted(lambda: self.retriever.embed_video(clip, method))
        flops = {"vision": self._flops[key]}
        return found._replace(receipt=replace(found.receipt, flops=flops))
