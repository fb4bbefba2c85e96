"""Commands that train and judge many runs: the demonstration, the comparison, the ablation."""
