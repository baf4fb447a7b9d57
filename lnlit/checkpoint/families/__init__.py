"""Families of transformers' decoders, one file each."""
