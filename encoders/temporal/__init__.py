"""Temporal encoders by name: `get_temporal("ssd", dim=256)`; one file an encoder."""

from .aaren import AarenEncoder, prefix_attention
from .attention import AttentionEncoder
from .base import TemporalEncoder
from .chunked import ssd_chunked
from .h3 import H3Encoder
from .identity import IdentityEncoder
from .lmu import LMUEncoder
from .lssl import LSSLEncoder
from .mamba import MambaEncoder
from .mambamixer import MambaMixerEncoder
from .registry import (
    describe,
    find_temporal,
    get_alike,
    get_temporal,
    register_temporal,
    temporal_names,
    temporal_packages,
)
from .s_mamba import SMambaEncoder
from .selective import selective_scan
from .ssd import SSDEncoder
from .storm import StormEncoder, StormProjector
from .temporal_conv import TemporalConvEncoder
from .tsm import ShiftEncoder

__all__ = [
    "AarenEncoder",
    "AttentionEncoder",
    "H3Encoder",
    "IdentityEncoder",
    "LMUEncoder",
    "LSSLEncoder",
    "MambaEncoder",
    "MambaMixerEncoder",
    "SMambaEncoder",
    "SSDEncoder",
    "ShiftEncoder",
    "StormEncoder",
    "StormProjector",
    "TemporalConvEncoder",
    "TemporalEncoder",
    "describe",
    "find_temporal",
    "get_alike",
    "get_temporal",
    "prefix_attention",
    "register_temporal",
    "selective_scan",
    "ssd_chunked",
    "temporal_names",
    "temporal_packages",
]
