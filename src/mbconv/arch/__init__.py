"""Networks as data: specs, their scaling, the named ones, what they cost. Imports no torch."""
