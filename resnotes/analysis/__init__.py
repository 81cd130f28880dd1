"""Measurements on networks, and statistics on what was measured; tensors and arrays in, numbers out."""
