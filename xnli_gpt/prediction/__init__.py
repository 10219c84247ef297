"""Pairs that are predicted: from a file or a pipe, and to one."""
