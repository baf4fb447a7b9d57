"""Files that exported heterogeneous folders carry, so that transformers and vLLM load them. lnlit never imports them."""
