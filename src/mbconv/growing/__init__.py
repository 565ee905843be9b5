"""Larger networks from smaller ones that compute the same: plan (data, no torch), then transfer."""
