"""Measured tables; ``methods*.csv`` are installed, as ``vidllm.eval.measured``."""
