"""Model files: reads every known format, and writes folders that transformers and vLLM load.

`formats.open_checkpoint` finds the reader, `load.load_weights` fills a built decoder, `folder.save_folder` writes a
folder, and `convert` combines reading and writing.
"""
