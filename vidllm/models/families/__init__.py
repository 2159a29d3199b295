"""Hugging Face video-LLMs: one small adapter a family, and the hooks that all of them share.

An adapter knows what is peculiar to its family: where the parts are, which tokens of a prompt are
which video, and what its vision tower can tell. Everything else (positions, masks, the cache,
batches, DeepStack) is done once, in `hooks`.
"""
