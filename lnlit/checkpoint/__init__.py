"""Model files: reading every format we know, writing folders that transformers and vLLM load.

`formats.open_checkpoint` finds the reader, `load.load_weights` fills a built decoder, `folder.save_folder` writes one,
`convert` joins reading and writing.
"""
