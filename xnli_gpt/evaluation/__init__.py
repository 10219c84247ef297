"""Scores: metrics, intervals, comparison, slices, predictions."""
