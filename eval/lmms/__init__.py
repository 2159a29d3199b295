"""vidllm's models inside lmms-eval."""
