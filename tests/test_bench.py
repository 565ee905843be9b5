"""`mbconv bench`: counts, timing in turn, memory, what goes wrong, and what is printed."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from mbconv.arch.cost import cost
from mbconv.arch.published import published_top1
from mbconv.arch.zoo import get_spec, list_specs
from mbconv.cli import main
from mbconv.errors import UserError
from mbconv.measure import bench, speed
from mbconv.measure.bench import Bench, Plan, failure
from mbconv.measure.count import count
from mbconv.measure.footprint import Footprints
from mbconv.measure.memory import measurable
from mbconv.measure.noise import Beside, Calibration
from mbconv.measure.speed import FEWEST, Timing, measure, median_interval
from mbconv.measure.subject import Subject, open_subject
from mbconv.measure.task import Task, Way
from mbconv.nn.model import build
from mbconv.record import Record, read_records
from mbconv.report.bench import bench_lines
from small import SMALL, write_model

MIB = 2**20
OURS = ("efficientnet_b0", "efficientnet_lite0", "efficientnetv2_b0", "mobilenetv2_100",
        "mobilenetv3_large_100", "mobilenetv4_conv_small", "mnasnet_a1", "tinynet_e")  # fmt: skip
TIMM = ("efficientnet_b0", "mobilenetv3_large_100", "semnasnet_100", "resnet18", "resnet50d",
        "vit_tiny_patch16_224")  # fmt: skip
TORCHVISION = {"resnet18": 1.814, "resnet50": 4.089, "resnext50_32x4d": 4.23,
               "mobilenet_v2": 0.301, "mnasnet1_0": 0.314, "shufflenet_v2_x1_0": 0.145}  # fmt: skip


class Quiet:
    """A calibration that answers from a list, then that all is quiet and the threads are near."""

    limit, opening, nearest = 1.2, 1.0, 1e-6
    good, near, quiet = Calibration.good, Calibration.near, Calibration.quiet

    def __init__(self, *answers: float, meetings: Sequence[float] = ()) -> None:
        self.answers, self.meetings = list(answers), list(meetings)

    def begin(self) -> None:
        pass

    def remember(self) -> None:
        pass

    def end(self) -> Beside:
        return Beside(self.answers.pop(0) if self.answers else 1.0,
                      self.meetings.pop(0) if self.meetings else 1e-6)  # fmt: skip


class Clock:
    """Time that passes only where a task says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Fake:
    """A task of known length."""

    def __init__(self, clock: Clock, seconds: float, log: list[str], name: str) -> None:
        self.clock, self.seconds, self.log = clock, seconds, log
        self.name = name

    def __call__(self) -> None:
        self.log.append(self.name)
        self.clock.now += self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


def measured(tasks: list[Any], quiet: Quiet, **how: Any) -> dict[Any, Any]:
    return measure(dict.fromkeys(tasks, how.pop("calls", 1)), quiet, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OURS)
def test_ours_are_counted_as_the_spec_says(name: str) -> None:
    found, expected = (
        count(build(get_spec(name)), torch.zeros(1, 3, 64, 64)),
        cost(get_spec(name), 64),
    )
    assert found.params == expected.params
    assert found.macs == expected.macs
    assert found.activation_bytes == expected.activation_bytes


@pytest.mark.parametrize("name", TIMM)
def test_timms_are_counted_as_torch_counts_them_on_meta(name: str) -> None:
    subject = open_subject(f"timm:{name}")
    side = subject.resolution if name.startswith("vit") else 64
    found = count(subject.module, torch.zeros(1, 3, side, side))
    meta = subject.module.to("meta").eval()
    with FlopCounterMode(display=False) as flops:
        meta(torch.zeros(1, 3, side, side, device="meta"))
    assert 2 * found.macs == flops.get_total_flops() > 0
    assert found.params == sum(p.numel() for p in meta.parameters())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_are_counted_as_it_publishes(name: str) -> None:
    subject = open_subject(f"torchvision:{name}")
    found = count(subject.module, torch.zeros(1, 3, 224, 224))
    assert found.macs / 1e9 == pytest.approx(TORCHVISION[name], abs=6e-4)
    from torchvision.models import get_model_weights

    assert found.params == get_model_weights(name).DEFAULT.meta["num_params"]  # type: ignore[attr-defined]


def test_counting_leaves_the_mode_alone() -> None:
    network = build(SMALL).train()
    before = network.stem.norm.running_mean.clone()  # type: ignore[union-attr]
    count(network, torch.randn(1, 3, 32, 32))
    assert network.training
    assert torch.equal(network.stem.norm.running_mean, before)  # type: ignore[arg-type]


def test_published_accuracies() -> None:
    assert published_top1("efficientnet_b0") == {
        "top1": 0.771, "resolution": 224, "source": "EfficientNet, arXiv 1905.11946"
    }  # fmt: skip
    assert published_top1("tf_efficientnet_b4") == published_top1("efficientnet_b4")
    assert published_top1("no_such_network") is None
    known = [found for name in list_specs() if (found := published_top1(name))]
    assert len(known) >= 50
    assert all(0.5 < found["top1"] < 0.9 and found["source"] for found in known)
    resnet = open_subject("torchvision:resnet18").published
    assert resnet is not None
    assert resnet["top1"] == pytest.approx(0.69758)
    assert "IMAGENET1K_V1" in resnet["source"]


def test_turns_alternate_and_take_about_as_long(clock: Clock) -> None:
    log: list[str] = []
    fast, slow = Fake(clock, 0.03, log, "fast"), Fake(clock, 0.2, log, "slow")
    found = measured([fast, slow], Quiet(), rounds=4)
    assert found[fast].median == pytest.approx(0.03)
    assert found[slow].median == pytest.approx(0.2)
    assert [len(calls) for calls in found[fast].rounds] == [10] * 4
    assert [len(calls) for calls in found[slow].rounds] == [2] * 4
    order = [a for a, b in zip(log, [*log[1:], ""], strict=True) if a != b]
    assert order == ["fast", "slow"] * 3 + ["fast"]  # warm-up, then back and forth
    assert not found[fast].noisy
    assert found[fast].repeated == 0


def test_slow_networks_get_fewer_rounds_but_three(clock: Clock) -> None:
    task = Fake(clock, 9.0, [], "huge")
    assert len(measured([task], Quiet(), rounds=7, limit=20)[task].rounds) == 3


def test_noisy_turns_are_taken_again(clock: Clock) -> None:
    task = Fake(clock, 0.5, [], "a")
    found = measured([task], Quiet(1.0, 1.5, 1.0, 2.0), rounds=3)[task]
    assert found.repeated == 2
    assert found.noise == 1.0
    assert not found.noisy


def test_only_the_task_whose_turn_was_noisy_takes_another(clock: Clock) -> None:
    log: list[str] = []
    first, second = Fake(clock, 0.5, log, "first"), Fake(clock, 0.5, log, "second")
    found = measured([first, second], Quiet(1.5), rounds=3)
    assert found[first].repeated == 1
    assert found[second].repeated == 0
    assert log[-1] == "first"


def test_turns_with_the_cores_apart_do_not_count(clock: Clock) -> None:
    task = Fake(clock, 0.5, [], "a")
    found = measured([task], Quiet(meetings=[2e-6, 1e-6, 2e-6, 1.2e-6]), rounds=3)[task]
    assert found.repeated == 2
    assert found.apart == 0
    assert found.meeting == pytest.approx(1e-6)


def test_cores_that_stay_apart_are_told_but_no_noise(clock: Clock) -> None:
    task = Fake(clock, 0.5, [], "a")
    found = measured([task], Quiet(meetings=[2e-6, 3e-6] * 12), rounds=3)[task]
    assert (len(found.rounds), found.apart, found.repeated) == (3, 3, 9)
    assert found.meeting == 2e-6  # the nearest there were
    assert not found.noisy


@pytest.mark.parametrize(("longer", "counted"), [(0.01, 10), (0.05, 4)])
def test_turns_with_the_cores_apart_count_where_they_are_as_quick(
    clock: Clock, longer: float, counted: int
) -> None:
    """Two of three turns apart: all make the median of a task that does not mind, else the near."""
    meetings = [1e-6, 2e-6, 2e-6] * 8

    class Minding(Fake):
        def __call__(self) -> None:
            self.seconds = 0.5 * (1 if meetings[-len(quiet.meetings)] < 2e-6 else 1 + longer)
            super().__call__()

    quiet = Quiet(meetings=meetings)
    task = Minding(clock, 0.5, [], "a")
    found = measured([task], quiet, rounds=6)[task]
    assert (len(found.rounds), found.apart) == (counted, 0)
    assert found.repeated == 10 - counted
    assert found.median == pytest.approx(0.5 if counted == 4 else 0.505)


def test_patience_with_the_cores_ends(clock: Clock) -> None:
    task = Fake(clock, 50.0, [], "a")
    found = measured([task], Quiet(meetings=[2e-6] * 12), rounds=3)[task]
    assert found.repeated == 5  # in 240 seconds


def test_a_machine_that_stays_noisy_is_told(clock: Clock) -> None:
    task = Fake(clock, 0.5, [], "a")
    found = measured([task], Quiet(1.4, 1.5, 1.4, 1.3, 1.4, 1.4), rounds=3)[task]
    assert len(found.rounds) == 3
    assert found.repeated == 3  # more would not help
    assert found.noise == 1.4  # of the quietest three
    assert found.noisy


def test_a_program_that_ran_from_the_start_is_told(clock: Clock) -> None:
    quiet, task = Quiet(), Fake(clock, 0.5, [], "a")
    quiet.opening = 1.6
    assert measured([task], quiet, rounds=3)[task].noisy


def test_ratios_are_those_of_the_same_round(clock: Clock) -> None:
    """A turn that was taken again has no partner."""
    first, second = Fake(clock, 0.5, [], "a"), Fake(clock, 0.75, [], "b")
    found = measured([first, second], Quiet(1.5), rounds=3)
    assert found[first].numbers == (1, 2, 3)
    assert found[second].numbers == (0, 1, 2)
    assert found[first].ratios(found[second]) == pytest.approx([1.5, 1.5])


def test_an_uncertain_median_gets_more_turns(clock: Clock) -> None:
    """Up to twice as many; a task that always takes as long gets none."""

    class Wavering(Fake):
        def __call__(self) -> None:
            self.seconds = 1.7 - self.seconds
            super().__call__()

    steady, wavering = Fake(clock, 0.5, [], "a"), Wavering(clock, 0.7, [], "b")
    assert len(measured([steady], Quiet(), rounds=6)[steady].rounds) == 6
    assert len(measured([steady, wavering], Quiet(), rounds=6)[wavering].rounds) == 12


def test_what_one_raises_leaves_the_others(clock: Clock) -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    good = Fake(clock, 0.1, [], "good")
    bad = Fake(clock, 0.1, [], "bad")
    bad.__class__ = type("Bad", (Fake,), {"__call__": lambda self: broken()})
    found = measured([bad, good], Quiet(), rounds=3)
    assert isinstance(found[bad], RuntimeError)
    assert found[good].median == pytest.approx(0.1)


def test_what_fails_later_leaves_the_others(clock: Clock) -> None:
    class Tiring(Fake):
        def __call__(self) -> None:
            super().__call__()
            if len(self.log) > 8:
                raise RuntimeError("out of memory")

    good, bad = Fake(clock, 0.5, [], "good"), Tiring(clock, 0.5, [], "bad")
    found = measured([bad, good], Quiet(), rounds=6)
    assert str(found[bad]) == "out of memory"
    assert len(found[good].rounds) == 6


def test_the_interval_of_a_median() -> None:
    assert median_interval([1, 2, 3, 4, 5]) is None  # 2 / 2**5 is more than a twentieth
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    assert median_interval(list(range(9))) == (1, 7)  # 20 / 2**9 outside
    timing = Timing(((1.0, 2.0), (3.0, 5.0)), noise=1.0, first=9.0)
    assert timing.median == 2.5
    assert timing.spread == pytest.approx(1.7678, abs=1e-4)
    assert timing.percentile(100) == 5.0


def test_a_task_does_what_it_says() -> None:
    subject = Subject("small", "mbconv", build(SMALL), 32)
    before = [p.clone() for p in subject.module.parameters()]
    step = Task(subject, Way(channels_last=False), "training", 2, 32)
    step()
    learnt = [not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True)]
    assert any(learnt)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.module.parameters(), strict=True))
    last = Task(subject, Way(dtype="bfloat16"), "inference", 3, 32)
    last()
    assert last.pictures.is_contiguous(memory_format=torch.channels_last)
    assert last.forward().dtype == torch.bfloat16
    assert last.forward().shape == (3, 4)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="timm:resnet50"):
        open_subject("timm:resnet500")
    with pytest.raises(UserError, match="torchvision:resnet50"):
        open_subject("torchvision:resnet500")
    with pytest.raises(UserError, match="efficientnet_b0"):
        open_subject("efficientnet_b00")


def test_a_batch_that_will_not_fit_is_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def peak(entry: str, request: dict[str, Any]) -> dict[str, int]:
        tried.append(request["batch"])
        return {"peak": (300 + 10 * request["batch"]) * MIB, "program": 200 * MIB}

    monkeypatch.setattr("mbconv.measure.footprint.run_child", peak)
    monkeypatch.setattr("mbconv.measure.footprint.available_memory", lambda: 1000 * MIB)
    subject = Subject("small", "mbconv", build(SMALL), 32)
    prints = Footprints(Way(), 1)
    assert prints.peak(subject, "inference", 4, 32)["peak"] == 340 * MIB
    assert tried == [1, 4]  # one picture in proportion: 200 + 4 x 110 MiB fit
    with pytest.raises(UserError, match=r"batch of 100 does not fit: it needs about 1,300 MiB"):
        prints.peak(subject, "inference", 100, 32)
    assert prints.peak(subject, "inference", 50, 32)["peak"] == 800 * MIB
    assert tried == [1, 4, 50]


@pytest.mark.skipif(not measurable(), reason="memory is read from /proc")
def test_the_command_on_real_networks(tmp_path: Path) -> None:
    """A saved file and a wrong name: the row that can be measured is, the other says why."""
    model, out = write_model(tmp_path / "small.safetensors"), tmp_path / "r.jsonl"
    args = ["bench", str(model), "timm:resnet500", "--batch", "2,100000000",
            "--train-batch", "none", "--threads", "1", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    records = read_records(out)
    good = [r for r in records if r.detail["network"] == str(model)]
    names = {r.name for r in good if "error" not in r.detail}
    assert names == {"params", "macs", "activation_bytes", "peak_memory", "latency", "throughput"}
    latency = next(r for r in good if r.name == "latency")
    turns = latency.detail["rounds"]
    assert turns >= FEWEST
    assert (latency.n or 0) >= turns * bench.LATENCY_CALLS
    assert 0 < latency.value <= latency.detail["p90"] <= latency.detail["p99"]
    if turns >= 6:  # fewer on a busy machine, and no interval
        assert latency.low is not None
        assert latency.high is not None
        assert latency.low <= latency.high
    assert next(r for r in good if r.name == "peak_memory").value > 100 * MIB
    errors = [r.detail["error"] for r in records if r.n == 0]
    assert any("no network 'resnet500'" in error for error in errors)
    assert any("a batch of 100000000 does not fit" in error for error in errors)
    assert "does not fit" in done.output
    assert "calibration" in done.output


def test_a_network_that_fails_at_a_size_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "Calibration", partial(Calibration, checks=2))
    plan = Plan(resolution=33, batches=(), train_batches=(), latency=False, memory=False)
    records = list(Bench(plan).records(["timm:vit_tiny_patch16_224", "mobilenetv3_small_075"]))
    assert "fails at 33 px" in records[0].detail["error"]
    assert [r.name for r in records[1:]] == ["params", "macs", "activation_bytes", "published_top1"]


def test_wrong_options() -> None:
    for wrong in (["--batch", "0"], ["--batch", "1,x"], ["--device", "tpu"], ["--dtype", "int8"]):
        done = CliRunner().invoke(main, ["bench", "efficientnet_b0", *wrong])
        assert done.exit_code == 2
        assert "Traceback" not in done.output
    done = CliRunner().invoke(main, ["bench", "a", "b", "--ops"])
    assert done.exit_code == 2
    assert "one network" in done.output


def shown(name: str, value: float, network: str, **detail: Any) -> Record:
    about = {"network": network, "mode": "inference", "batch": 1, "resolution": 32, "noise": 1.0,
             "noisy": False, "repeated": 0, "p90": 2.0, "p99": 3.0, "threads": 2,
             "dtype": "float32", "layout": "contiguous"}  # fmt: skip
    return Record(name=name, value=value, unit="ms", n=9, low=value, high=value + 1, spread=0.1,
                  detail=about | detail)  # fmt: skip


def test_lines_are_made_from_records_alone() -> None:
    records = [
        shown("latency", 9.0, "slow"),
        shown("latency", 5.0, "quick"),
        failure("latency", {"network": "huge", "batch": 1}, "a batch of 1 does not fit"),
        shown("peak_memory", 64 * MIB, "quick"),
    ]
    again = [Record.from_dict(json.loads(json.dumps(r.to_dict()))) for r in records]
    text = "\n".join(bench_lines(again))
    assert text.index("quick") < text.index("slow") < text.index("huge")
    assert "float32, contiguous" in text
    assert "2 threads" in text
    assert "5.0 to 6.0" in text
    assert "64" in text
    assert "a batch of 1 does not fit" in text
    assert "the machine was quiet: calibrations within 0%\n" in text + "\n"
    steady = [shown("latency", 5.0, "quick", pace=pace) for pace in (138.0, 140.0)]
    assert "within 0%, float32 products at 139 GFLOP/s" in "\n".join(bench_lines(steady))
    moved = [shown("latency", 5.0, "quick", pace=pace) for pace in (100.0, 140.0)]
    assert "GFLOP/s" not in "\n".join(bench_lines(moved)), "two machines have no common pace"
    met = [shown("latency", 5.0, "quick", pace=139.0, meeting=4.38, apart=2, repeated=7)]
    text = "\n".join(bench_lines(met))
    assert "threads meet in 4.4 us; 7 turns" in text
    assert "1 of 1 figures could not do without" in text
    noisy = [shown("latency", 5.0, "quick", noise=1.5, noisy=True)]
    assert "too noisy for 1 of 1 figures" in "\n".join(bench_lines(noisy))


@pytest.mark.slow
def test_latency_is_that_of_torchs_own_timer() -> None:
    """The ratio, taken in turn, of medians; needs a quiet machine."""
    from torch.utils import benchmark

    task = Task(open_subject("torchvision:resnet18"), Way(), "inference", 1, 224)
    timer = benchmark.Timer("f()", globals={"f": task}, num_threads=torch.get_num_threads())
    ratios = []
    for _ in range(7):
        ours = measured([task], Quiet(), rounds=3, calls=10)[task].median
        ratios.append(ours / timer.blocked_autorange(min_run_time=1).median)
    assert sorted(ratios)[3] == pytest.approx(1, abs=0.03)
