"""How the largest batch was worked out, in a terminal."""

from typing import Any

_MIB = 2**20


def fit_batch_lines(fit: dict[str, Any]) -> list[str]:
    """The measured peaks, the line through them and the division; `fit` is `Fit.to_dict`'s."""
    peaks = [peak / _MIB for peak in fit["peaks"]]
    fixed, each = fit["fixed"] / _MIB, fit["per_picture"] / _MIB
    off = max(
        abs(fixed + each * size - peak) for size, peak in zip(fit["sizes"], peaks, strict=True)
    )
    available, share = fit["available"] / _MIB, 1 - fit["reserve"]
    lines = ["pictures   peak MiB"]
    lines += [f"{size:8}  {peak:9,.0f}" for size, peak in zip(fit["sizes"], peaks, strict=True)]
    lines += [
        f"fixed part {fixed:,.0f} MiB, {each:,.2f} MiB a picture (least squares; the points are "
        f"within {off:,.0f} MiB of the line)",
        f"available {available:,.0f} MiB, {fit['reserve']:.0%} of it kept in reserve:",
        f"({available:,.0f} x {share:g} - {fixed:,.0f}) / {each:,.2f} = {fit['largest']:,} "
        "pictures",
    ]
    if fit["largest"] < 1:
        return [*lines, "not even one picture fits: take a smaller network or resolution"]
    return [
        *lines,
        f"at most: --set batch_size={fit['largest']}, or larger batches in parts with "
        f"--set optimizer.micro_batch={fit['largest']}",
    ]
