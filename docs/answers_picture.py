"""Draw docs/answers.png, three answers over one video, with the shipped weights."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vidllm import VideoLLM, load_video
from vidllm.models.shipped import sample_videos

QUESTIONS = (
    "when does the red star spin?",
    "when does the yellow phone change colour for the second time?",
    "when does the red plane blink?",
)
COLOURS = ("#d62728", "#e0a800", "#b04fc4")


def main() -> None:
    """Ask the sample and draw frames, answers over time, and the tokens that were kept."""
    video = next(p for p in sample_videos() if p.stem == "red-star")
    clip = load_video(video, frames=64)
    answers = VideoLLM.from_pretrained().ask(clip, list(QUESTIONS))
    figure = plt.figure(figsize=(10, 4.4), dpi=110)
    grid = figure.add_gridspec(2, 8, height_ratios=[1.15, 1], hspace=0.12, wspace=0.05)
    for i in range(8):
        axis = figure.add_subplot(grid[0, i])
        axis.imshow(clip.frames[4 + 8 * i])
        axis.set_title(f"{clip.seconds[4 + 8 * i]:.1f} s", fontsize=9)
        axis.axis("off")
    axis = figure.add_subplot(grid[1, :])
    for row, (question, answer, colour) in enumerate(zip(QUESTIONS, answers, COLOURS, strict=True)):
        for span in answer.spans:
            axis.barh(-row, span.end - span.start, left=span.start, height=0.5, color=colour)
            axis.text(
                span.end + 0.4,
                -row,
                f"{span.start:.1f} – {span.end:.1f} s",
                va="center",
                fontsize=9,
            )
        axis.text(0.2, -row + 0.33, question, fontsize=9.5, va="bottom")
    axis.set_xlim(0, clip.duration)
    axis.set_ylim(-len(QUESTIONS) + 0.5, 0.95)
    axis.set_yticks([])
    axis.set_xlabel(str(answers[0].receipt), fontsize=8.5)
    for side in ("top", "left", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(Path(__file__).with_name("answers.png"), bbox_inches="tight")


if __name__ == "__main__":
    main()
