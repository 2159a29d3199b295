"""Heads by name: `get_head("nasva", video_dim=512)`; one file a head.

They stand beside a language model: a cheap scorer of options, a grounder, a frame selector.
"""

from .alignment import Recall, inside, mean_recall, recall_at_1
from .base import Head, find_head, get_head, head_names, head_packages, load_head, register_head
from .nasva import NaSVA
from .tem_adapter import TemAdapter

__all__ = [
    "Head",
    "NaSVA",
    "Recall",
    "TemAdapter",
    "find_head",
    "get_head",
    "head_names",
    "head_packages",
    "inside",
    "load_head",
    "mean_recall",
    "recall_at_1",
    "register_head",
]
