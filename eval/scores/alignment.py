"""Sentence alignment: R@1 of HTM-Align (Han et al., CVPR 2022, arXiv 2204.02968) and CrossTask.

A sentence is placed right if its one predicted second lies in a true window; a sentence without a
prediction is a miss. The scores are those of `vidllm.encoders.heads.alignment` (loads torch).
"""

from __future__ import annotations

from vidllm.encoders.heads.alignment import Recall, mean_recall, recall_at_1

__all__ = ["Recall", "mean_recall", "recall_at_1"]
