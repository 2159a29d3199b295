"""Courses: how the systems of `vidllm.recipes` are trained."""
