"""What the network of `model.py` is made of: sizes, packed rows, masks and attention."""
