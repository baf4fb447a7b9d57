"""Steps that make training rows, and what runs them. Their pipeline is datatrove's, which an extra brings."""

from lnlit.errors import optional

optional("datatrove", "curate")
