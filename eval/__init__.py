"""Benchmarks of vidllm, installed as ``vidllm.eval``."""
