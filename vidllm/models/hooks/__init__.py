"""Compressors inside a model: before its decoder, between its layers, in its cache and tower."""
