"""Lossy compression with side information at K decoders."""
