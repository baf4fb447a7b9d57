"""Files that exported heterogeneous folders carry, for transformers and vLLM. lnlit itself never imports them."""
