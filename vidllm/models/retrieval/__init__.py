"""Dual encoders for retrieval: clips and texts as vectors of one space, by name.

`dual_encoder` is the project's own, of transformers' CLIP; `retriever` ranks clips by a text and
chooses frames of a long video, with it or any CLIP or SigLIP.
"""
