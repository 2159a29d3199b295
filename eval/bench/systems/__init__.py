"""Every system trained from one start under one budget, in one table: `vidllm bench systems`."""
