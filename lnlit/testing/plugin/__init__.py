"""The templates of `lnlit plugins new KIND NAME`: one working part of each kind and its contract test.

Each is a real module, in which `example` and `Example` are replaced by the name and the class of the new part.
"""
