"""Networks as artifacts for other runtimes, INT8, and the guard that measures what that costs."""
