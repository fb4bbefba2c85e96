"""The Wan family, through diffusers and transformers."""
