"""Evaluation: videos in, rows out."""
