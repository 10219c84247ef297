"""A fine-tuned model as a folder that the transformers library loads."""
