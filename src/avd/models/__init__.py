"""Adapters over diffusers and transformers: the only room that imports them."""
