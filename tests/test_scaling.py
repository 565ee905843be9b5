"""The model of communication, and the pages about several machines."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbconv.cli import main

DOCS = Path(__file__).parent.parent / "docs"
OPTIONS = {"nnodes", "nproc-per-node", "max-restarts", "rdzv-backend", "rdzv-endpoint", "rdzv-id"}


@pytest.fixture(scope="module")
def made() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield runpy.run_path(str(DOCS / "make_scaling.py"))


def link(made: Any, latency: float, bandwidth: float) -> Any:
    return made["Link"](latency, bandwidth)


def test_the_page_and_the_figure_are_current(made: Any) -> None:
    measured = made["load"]()
    assert (DOCS / "scaling.md").read_text(encoding="utf-8") == made["page"](measured)
    assert (DOCS / "scaling.svg").read_text(encoding="utf-8") == made["figure"](measured)


def test_a_ring_sends_all_but_one_share_twice() -> None:
    model = runpy.run_path(str(DOCS / "scaling_model.py"))
    ring, at = model["all_reduce"], model["Link"]
    assert ring(800, 1, at(1.0, 100.0)) == 0
    assert ring(800, 2, at(0.0, 100.0)) == pytest.approx(8.0)
    assert ring(800, 4, at(0.5, 100.0)) == pytest.approx(6 * (0.5 + 2.0))


def test_what_backward_hides_is_not_added(made: Any) -> None:
    sent = made["Traffic"]((100, 100), (0.25, 1.0), 10)
    wire = link(made, 0.0, 100.0)  # two processes: a second for each bucket, a tenth for the tail
    assert made["exposed"](sent, 2, wire, backward=8.0) == pytest.approx(1.1)
    assert made["exposed"](sent, 2, wire, backward=0.4) == pytest.approx(0.1 + 2.0 + 0.1 - 0.4)
    assert made["exposed"](sent, 2, link(made, 0.0, float("inf")), backward=8.0) == 0


def test_the_last_bucket_of_a_network_is_full_at_the_end(made: Any) -> None:
    sent = made["traffic"]("efficientnet_b0", 224)
    assert sum(sent.sizes) == 4 * 5_288_548
    assert list(sent.full) == sorted(sent.full)
    assert sent.full[-1] == 1


def test_the_least_pictures_that_hide_are_the_least(made: Any) -> None:
    sent, network = made["traffic"]("efficientnet_b0", 224), made["NETWORKS"][0]
    least = made["hiding"](sent, 64, network)
    step = made["Step"]
    assert step(sent, 64, network, least).kept >= 1 / 1.05 > step(sent, 64, network, least - 1).kept


def test_the_fit_finds_the_link_that_times_were_made_with(made: Any) -> None:
    record = made["Record"]
    wire, model = link(made, 2e-3, 1e9), runpy.run_path(str(DOCS / "scaling_model.py"))
    times = {size: 1000 * model["all_reduce"](size, 2, wire) for size in (4096, 1 << 18, 1 << 23)}
    records = {f"all-reduce {s}": record(name=f"all-reduce {s}", value=t) for s, t in times.items()}
    records["shared"] = record(name="shared", value=1.0, detail={"processes": 2})
    found = made["Measured"](records).link
    assert found.latency == pytest.approx(2e-3)
    assert found.bandwidth == pytest.approx(1e9)


def commands() -> list[list[str]]:
    """The words of every torchrun on the page."""
    text = (DOCS / "cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:srun )?torchrun (.*)$", text, re.MULTILINE)
    job = next(d for d in manifests() if d["kind"] == "Job")
    return [
        *(line.split() for line in lines),
        job["spec"]["template"]["spec"]["containers"][0]["args"],
    ]


def manifests() -> list[Any]:
    text = (DOCS / "cluster.md").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text.partition("```yaml\n")[2].partition("```")[0]))


def test_the_commands_take_options_that_there_are() -> None:
    train = main.commands["train"]
    known = {name for option in train.params for name in option.opts}
    assert len(commands()) == 7
    for words in commands():
        split = words.index("-m")
        assert words[split + 1 : split + 3] == ["mbconv", "train"]
        given = {w.partition("=")[0].removeprefix("--") for w in words[:split] if w[:2] == "--"}
        assert given <= OPTIONS
        own = {w.partition("=")[0] for w in words[split:] if w[:2] == "--"}
        assert own <= known
        assert "--out" in own, "what is started again must find its run"


def test_the_manifest_fits_together() -> None:
    service, job = manifests()
    spec = job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == spec["subdomain"]
    endpoint = f"--rdzv-endpoint={job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    args = spec["containers"][0]["args"]
    assert endpoint in args
    assert f"--nnodes={job['spec']['completions']}" in args
    mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
