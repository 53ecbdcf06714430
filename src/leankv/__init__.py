"""LeanKV Explorer: which KV-cache policy to serve a model with, on this GPU, for this traffic."""

__version__ = "0.1.0"
