"""`wan-mini`, the built-in miniature: its architecture, and the training of its VAE, teacher and interpolator."""
