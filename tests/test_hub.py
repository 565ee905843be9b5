"""The hub, through the real client, against a server on loopback; nothing else is reached."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants
from timm.models import save_for_hf

import mbconv
from hub_server import Hub, Repository
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.nn.model import MBConvNet, build
from mbconv.record import Record
from mbconv.weights.file import tensor_hash
from small import SMALL, write_classes

NAME = "ants/small"
MODEL = f"hf-hub:{NAME}"
LABELS = ("ant", "bee", "cat", "dog")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository as `save_pretrained` writes it; the client's cache is empty."""
    with Hub(
        {NAME: Repository(contents(mbconv.save_pretrained(network(), tmp_path / "small")))}
    ) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored afterwards, as --offline sets it
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def network() -> MBConvNet:
    torch.manual_seed(0)
    model = build(SMALL)
    model.labels = LABELS
    model.provenance = {
        "license": "Apache-2.0",
        "data_license": "CC0",
        "trained_on": "ImageNet-1k, ants",
    }
    return model.eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def weights_requests(hub: Hub) -> list[str]:
    return [line for line in hub.log if line.startswith("GET") and "model.safetensors" in line]


# Reading ----------------------------------------------------------------------------------


def test_a_network_of_the_hub_is_the_one_that_was_put_there(hub: Hub) -> None:
    model = mbconv.load(MODEL)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), network()(x))
    assert model.labels == LABELS
    assert model.provenance is not None
    assert model.provenance["license"] == "Apache-2.0"
    assert model.provenance["repository"] == MODEL
    assert model.provenance["revision"] == hub.repositories[NAME].commit
    content = hub.repositories[NAME].files["model.safetensors"]
    entry = hub.server.RequestHandlerClass._entry("x.safetensors", content)  # type: ignore[attr-defined]
    assert model.provenance["sha256"] == entry["lfs"]["oid"]


def test_what_was_downloaded_once_needs_no_hub(hub: Hub) -> None:
    first = mbconv.load(MODEL)
    seen = len(hub.log)
    again = mbconv.create_model(MODEL, pretrained=True, num_classes=7)
    assert len(hub.log) == seen
    assert again.spec.num_classes == 7
    assert torch.equal(again.stem.conv.weight, first.stem.conv.weight)


def test_a_revision_is_asked_for_by_name(hub: Hub) -> None:
    commit = hub.repositories[NAME].commit
    assert mbconv.load(f"{MODEL}@{commit}").labels == LABELS
    with pytest.raises(UserError, match=r"no revision 'v2'\. Leave it out"):
        mbconv.load(f"{MODEL}@v2")


def test_fetch_brings_what_is_newer(hub: Hub, tmp_path: Path) -> None:
    mbconv.load(MODEL)
    newer = network()
    newer.labels = ("a", "b", "c", "d")
    hub.repositories[NAME] = Repository(contents(mbconv.save_pretrained(newer, tmp_path / "new")))
    assert mbconv.load(MODEL).labels == LABELS
    assert run("weights", "fetch", MODEL).exit_code == 0
    assert mbconv.load(MODEL).labels == ("a", "b", "c", "d")


def test_a_cut_connection_is_resumed_where_it_broke(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept at once
    hub.cut = 10_000
    assert mbconv.load(MODEL).labels == LABELS
    first, second = weights_requests(hub)
    assert "bytes=" not in first
    assert second.endswith("bytes=10000-")


def test_weights_with_another_checksum_are_removed(hub: Hub, tmp_path: Path) -> None:
    hub.damage = True
    with pytest.raises(UserError, match=r"are damaged: their checksum is not the hub's"):
        mbconv.load(MODEL)
    hub.damage = False
    assert mbconv.load(MODEL).labels == LABELS  # downloaded again
    stored = next((tmp_path / "cache").glob("models--*/snapshots/*/model.safetensors")).resolve()
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-1] + b"!")
    done = run("weights", "verify")
    assert done.exit_code == 1, done.output
    assert re.search(rf"broken  {MODEL}: .*checksum", done.output)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ants/none", r"has no repository ants/none, or it is private\. Check the name"),
        ("ants/gated", r"ants/gated is gated: accept its terms at http.*/ants/gated and log in"),
        ("ants/empty", r"holds no model\.safetensors; mbconv opens no pickled weights"),
        ("small", r"'small' names no repository; write hf-hub:OWNER/NAME"),
        ("a/b/c", "names no repository"),
        ("../..", "names no repository"),
    ],
)
def test_what_cannot_be_had_gets_one_sentence(hub: Hub, name: str, words: str) -> None:
    hub.repositories["ants/gated"] = Repository({"config.json": b"{}"}, gated=True)
    hub.repositories["ants/empty"] = Repository({"pytorch_model.bin": b"x", "config.json": b"{}"})
    done = run("info", f"hf-hub:{name}")
    assert done.exit_code == 2
    sentence = done.output.splitlines()[-1]  # behind the progress of the download
    assert re.match(rf"error: .*{words}", sentence)


def test_a_gated_repository_stays_shut_with_a_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-somebody")
    hub.repositories["ants/gated"] = Repository({"config.json": b"{}"}, gated=True)
    with pytest.raises(UserError, match="is gated: accept its terms"):
        mbconv.load("hf-hub:ants/gated")


def test_offline_takes_only_what_is_there(hub: Hub, tmp_path: Path) -> None:
    refused = run("info", MODEL, "--offline")
    assert refused.exit_code == 2
    assert re.search(r"not in the cache .*--offline .*mbconv weights fetch", refused.output)
    assert hub.log == []
    os.environ["HF_HUB_OFFLINE"] = "0"
    mbconv.load(MODEL)
    seen = len(hub.log)
    assert run("info", MODEL, "--offline").exit_code == 0
    assert run("weights", "fetch", MODEL, "--offline").exit_code == 0
    assert len(hub.log) == seen


def test_without_network_there_is_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError, match=r"could not be reached at http.*Check the network"):
            mbconv.load(MODEL)


def test_the_environment_moves_hub_and_cache(hub: Hub, tmp_path: Path) -> None:
    """A process of its own, as a user starts it; the variables are the client's."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [
        sys.executable,
        "-c",
        "from mbconv.cli import main; main()",
        "weights",
        "fetch",
        MODEL,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "license: Apache-2.0" in done.stdout
    assert list((tmp_path / "home").rglob("model.safetensors"))


# The commands -----------------------------------------------------------------------------


def test_list_shows_licences(hub: Hub) -> None:
    mbconv.load(MODEL)
    listed = {row["model"]: row for row in json.loads(run("weights", "list", "--json").output)}
    assert listed[MODEL]["license"] == "Apache-2.0"
    assert listed[MODEL]["data_license"] == "CC0"
    assert listed[MODEL]["bytes"] == len(hub.repositories[NAME].files["model.safetensors"])
    assert listed["efficientnet_lite0"]["state"] == "installed"
    assert "non-commercial" in listed["efficientnet_lite0"]["data_license"]
    assert f"{MODEL} " in run("weights", "list").output
    assert run("weights", "verify", MODEL, "efficientnet_lite0").output.count("ok ") == 2


def test_info_reads_no_weights(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_035", num_classes=3)
    save_for_hf(net, tmp_path / "net", safe_serialization=True)
    hub.repositories["timm/net"] = Repository(contents(tmp_path / "net"))
    for model in (MODEL, "hf-hub:timm/net"):
        hub.log.clear()
        shown = json.loads(run("info", model, "--json").output)
        (asked,) = weights_requests(hub)
        assert asked.endswith("bytes=0-100000")  # the client's guess at a header's length
        assert run("weights", "list").output.count(model) == 0
        assert mbconv.load(model).spec.to_dict() == shown["spec"]
        assert json.loads(run("info", model, "--json").output) == shown  # now from the cache


def test_info_on_what_cannot_be_had(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["ants/pickled"] = Repository({"pytorch_model.bin": b"", "config.json": b"{}"})
    hub.repositories["ants/torn"] = Repository({"model.safetensors": b"PK", "config.json": b"{}"})
    for name, words in {
        "ants/pickled": "holds no model.safetensors", "ants/torn": "holds no model.safetensors",
        "ants/none": "has no repository ants/none", f"{NAME}@v2": "has no revision 'v2'",
    }.items():  # fmt: skip
        result = run("info", f"hf-hub:{name}")
        assert result.exit_code == 2, result.output
        assert words in result.output
    result = run("info", MODEL, "--offline")
    assert "forbids downloading" in result.output


def test_timms_repositories_are_read_and_listed(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("mobilenetv2_035", "resnet10t"):
        net = timm.create_model(name, num_classes=3)
        save_for_hf(net, tmp_path / name, safe_serialization=True)
        hub.repositories[f"timm/{name}"] = Repository(contents(tmp_path / name))
    model = mbconv.load("hf-hub:timm/mobilenetv2_035")
    assert model.spec.num_classes == 3
    assert model.provenance is not None
    assert model.provenance["license"] == "apache-2.0"
    assert model.provenance["revision"] == hub.repositories["timm/mobilenetv2_035"].commit
    with pytest.raises(UserError, match="timm has no network 'resnet10t' that mbconv knows"):
        mbconv.load("hf-hub:timm/resnet10t")
    listed = [row["model"] for row in json.loads(run("weights", "list", "--json").output)]
    assert "hf-hub:timm/mobilenetv2_035" in listed  # and not the other, though it is cached
    assert not any("resnet" in model for model in listed)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_training_starts_from_the_hub_and_goes_back_to_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_classes(tmp_path / "data", each=6)
    out = tmp_path / "run"
    args = ("--epochs", 1, "--resolution", 32, "--out", out)
    done = run("train", data, "--model", MODEL, *args)
    assert done.exit_code == 0, done.output
    assert "pretrained weights" in done.output
    provenance = mbconv.load(out).provenance
    assert provenance is not None
    assert provenance["base"]["license"] == "Apache-2.0"
    assert provenance["base"]["repository"] == MODEL
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = run("weights", "push", out, "me/trained")
    assert done.exit_code == 0, done.output
    card = hub.repositories["me/trained"].files["README.md"].decode()
    assert re.search(r"Top-1 accuracy .*, 95% interval .* \(n = \d+\), on data, split test", card)
    assert "weights: not stated; of what training started from: Apache-2.0" in card
    assert str(tmp_path) not in card


# Writing ----------------------------------------------------------------------------------


def test_save_pretrained_round_trip(tmp_path: Path) -> None:
    model = network()
    folder = mbconv.save_pretrained(model, tmp_path / "out", license="mit")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    again = mbconv.load(folder)
    assert tensor_hash(again.state_dict()) == tensor_hash(model.state_dict())
    assert again.provenance == {**(model.provenance or {}), "license": "mit"}
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "mbconv"
    assert mbconv.Spec.from_dict(config["spec"]) == model.spec
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give the folder"):
        mbconv.save_pretrained(model, tmp_path / "file")


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    score = Record(
        name="top1", value=0.9274, n=372, low=0.8962, high=0.95,
        detail={"data": "/home/me/clothing", "split": "test"},
    )  # fmt: skip
    folder = mbconv.save_pretrained(network(), tmp_path, evaluation=score, repository="me/x")
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "mbconv"
    assert front["datasets"] == ["imagenet-1k"]  # the hub knows no `ants`
    assert front["pipeline_tag"] == "image-classification"
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["value"], metric["args"]["n"]) == (0.9274, 372)
    assert "92.7%, 95% interval 89.6% to 95.0% (n = 372), on clothing, split test" in card
    assert "/home/me" not in card
    assert 'mbconv.load("hf-hub:me/x")' in card
    assert "mean 0.485, 0.456, 0.406" in card
    assert "training data: CC0" in card
    assert "ant; bee; cat; dog." in card


def test_the_card_claims_nothing_that_is_unknown(tmp_path: Path) -> None:
    model = network()
    model.provenance = model.labels = None
    card = (mbconv.save_pretrained(model, tmp_path) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert not {"license", "datasets", "metrics", "model-index"} & set(front)
    assert "## Evaluation" not in card
    assert "weights: not stated\n" in card
    model.provenance = {"trained_on": "photos", "base": {"license": "Apache-2.0"}}
    card = (mbconv.save_pretrained(model, tmp_path) / "README.md").read_text()
    assert "license" not in yaml.safe_load(card.split("---")[1])
    assert "weights: not stated; of what training started from: Apache-2.0" in card


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_push_and_load_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"does not allow this for me/mine \(401\): log in"):
        mbconv.push_to_hub(network(), "me/mine")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    address = mbconv.push_to_hub(network(), "me/mine", private=True)
    mine = hub.repositories["me/mine"]
    assert address == f"{hub.url}/me/mine/commit/{mine.commit}"
    assert mine.private
    assert set(mine.files) == {"README.md", "config.json", "model.safetensors"}
    assert any(line.startswith("PUT /lfs/") for line in hub.log)
    again = mbconv.load("hf-hub:me/mine")
    assert tensor_hash(again.state_dict()) == tensor_hash(network().state_dict())
    mbconv.save(again, tmp_path / "m.safetensors")
    done = run("weights", "push", tmp_path / "m.safetensors", "me/mine", "--license", "mit")
    assert done.exit_code == 0, done.output
    assert b"license: mit" in mine.files["README.md"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="is not uploaded: --offline"):
        mbconv.push_to_hub(again, "me/mine")
