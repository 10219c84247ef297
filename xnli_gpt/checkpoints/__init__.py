"""The reading of pretrained checkpoints: nothing of a file is run, every byte of it checked."""
