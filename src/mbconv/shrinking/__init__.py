"""Smaller networks from larger ones: what to remove is measured, the plan of it is data."""
