"""What `mbconv doctor` says: which kernels compute here, why, and what is missing."""

from typing import Any


def doctor_lines(
    environment: dict[str, Any],
    kernels: dict[str, Any],
    blocks: dict[str, str | None] | None = None,
) -> list[str]:
    """One finding a line, from `record.environment()` and `kernels.status()`.

    `blocks`: a model's blocks by name, with the reason why one stays plain.
    """
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    features = ", ".join(kernels["features"]) or "none that the kernels know"
    lines = [
        f"processor   {environment['hardware']}; {environment['cores']} cores, "
        f"{kernels['threads']} threads in use",
        f"has         {features}",
        f"software    {versions}",
        f"compiled    {', '.join(kernels['compiled']) or 'no kernels'}",
        f"computes    {_computes(kernels)}",
        "plain       blocks with hooks, subclasses, SyncBatchNorm, GELU, or a gate other than SE",
    ]
    lines += [f"missing     {item}" for item in _missing(kernels)]
    return lines if blocks is None else [*lines, *_block_lines(blocks)]


def _block_lines(blocks: dict[str, str | None]) -> list[str]:
    """How many blocks are fused, then those that are not, together where the reason is one."""
    fused = sum(reason is None for reason in blocks.values())
    by_reason: dict[str, list[str]] = {}
    for name, reason in blocks.items():
        if reason is not None:
            by_reason.setdefault(reason, []).append(name)
    return [f"blocks      {fused} of {len(blocks)} can be fused"] + [
        f"            {', '.join(names)}: {reason}" for reason, names in by_reason.items()
    ]


def _computes(kernels: dict[str, Any]) -> str:
    mode, chosen = kernels["mode"], kernels["instruction_set"]
    if mode == "reference":
        return "fused operators in plain torch, as chosen: little memory, no gain in speed"
    if mode == "plain":
        return "plain modules, as chosen"
    if chosen is None:
        return "plain modules: on this processor a step takes several times as long as it could"
    lean = "; the expanded map is recomputed (lean)" if kernels["memory"] == "lean" else ""
    return f"native kernels ({chosen}) in float32 and bfloat16 on the CPU{lean}"


def _missing(kernels: dict[str, Any]) -> list[str]:
    if kernels["missing"] is not None:
        return [kernels["missing"]]
    best = kernels["usable"][0]
    if best not in kernels["compiled"]:
        return [f"{best}, which this processor has: the install could not compile it"]
    return []
