"""What `lnlit plugins new KIND NAME` writes: one working part of each kind and its contract test.

Each is a real module; `example` and `Example` stand for the name and the class of what is written from it.
"""
