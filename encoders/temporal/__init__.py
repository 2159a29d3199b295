"""Temporal encoders by name: `get_temporal("ssd", dim=256)`; one file an encoder."""

from .base import TemporalEncoder, get_temporal, register_temporal, temporal_names
from .identity import IdentityEncoder
from .scan import ssd_chunked, ssd_recurrent
from .ssd import SSDEncoder

__all__ = [
    "IdentityEncoder",
    "SSDEncoder",
    "TemporalEncoder",
    "get_temporal",
    "register_temporal",
    "ssd_chunked",
    "ssd_recurrent",
    "temporal_names",
]
