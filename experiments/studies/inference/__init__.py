"""Inference: what serves large models, and what it costs."""
