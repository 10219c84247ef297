"""A fine-tuning run put together: its configuration, checks, trainer and scores."""
