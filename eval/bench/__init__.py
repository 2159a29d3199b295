"""Measurements that a command repeats: ``vidllm bench``."""
