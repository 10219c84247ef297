"""From what a user calls a dataset to rows of token ids."""
