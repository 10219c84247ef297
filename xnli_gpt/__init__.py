"""The rooms below the files that a user types or imports."""
