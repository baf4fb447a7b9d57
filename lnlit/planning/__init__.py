"""What a run will take, known before it starts: bytes per rank and phase, FLOPs, time, disk. Nothing here reads weights
or computes with them: sizes come from a model's spec, and activations from its parts run on the meta device."""
