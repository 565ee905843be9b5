"""Networks side by side: what they cost, and what each learns within the same time."""
