"""Families of transformers' decoders, one per file."""
