"""Ablations: rows of many methods at one budget, tuned, judged with their errors, held against the paper."""
