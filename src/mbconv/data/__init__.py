"""Pictures: finding, decoding, auditing and preparing them.

Nothing is imported here, so that `mbconv data check` runs without loading torch.
"""
