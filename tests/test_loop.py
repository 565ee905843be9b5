"""The training step: gradients, losses, moving average, what learns and how fast."""

import numpy as np
import pytest
import torch

import mbconv
from mbconv.data.loader import Batch
from mbconv.nn.block import DropPath
from mbconv.training.loop import Trainer
from mbconv.training.machine import Machine
from mbconv.training.override import changed
from mbconv.training.recipe import Phase, Recipe
from small import SMALL

PLAIN = Machine(threads=1, workers=0)
SHORT = Recipe(name="t", phases=(Phase(32, 1),))
# Without noise and batch statistics, so that a step is a plain function of its pictures.
STILL = ("transfer.norms=frozen", "regularization.drop_path=0", "regularization.dropout=0")


def random_batch() -> Batch:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return Batch(pixels, torch.arange(8) % 4, ())


def test_frozen_parts_stay_and_the_rest_learns() -> None:
    torch.manual_seed(0)
    network = mbconv.build(SMALL)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recipe = changed(SHORT, ["transfer.frozen_stages=1", "transfer.norms=frozen"])
    trainer = Trainer(network, recipe, PLAIN, total=2)
    batch = random_batch()
    for index in range(2):
        trainer.step(batch, index, seed=0)
    for name, value in network.state_dict().items():
        frozen = name.startswith(("stem.", "stages.0.")) or "running" in name
        if frozen or name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name]), name


def test_the_frozen_part_does_not_change_the_loss() -> None:
    """Running the frozen stages apart is the same function as running the network whole."""
    torch.manual_seed(0)
    network = mbconv.build(SMALL.replace(dropout=0.0)).eval()
    recipe = changed(SHORT, [*STILL, "transfer.frozen_stages=2"])
    batch = random_batch()
    loss = Trainer(network, recipe, PLAIN, total=1).backward(batch)
    x = mbconv.data.transform.normalise(batch.pixels, network.preprocessing)
    logits = network.eval()(x)
    whole = torch.nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


def gradients(network: mbconv.MBConvNet) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    network = mbconv.build(SMALL)
    found = []
    for parts in ("null", "3", "1"):
        recipe = changed(SHORT, [*STILL, f"optimizer.micro_batch={parts}"])
        loss = Trainer(network, recipe, PLAIN, total=1).backward(random_batch())
        found.append((loss.item(), gradients(network)))
    for value, parts in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5)
        for a, b in zip(parts, found[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_longest_gradient_is_clipped() -> None:
    lengths = []
    for clip in ("null", "0.01", "1000"):
        torch.manual_seed(0)
        network = mbconv.build(SMALL)
        trainer = Trainer(network, changed(SHORT, [f"optimizer.clip={clip}"]), PLAIN, total=1)
        trainer.step(random_batch(), 0, seed=0)
        lengths.append(torch.cat([g.flatten() for g in gradients(network)]).norm().item())
    assert lengths[0] == lengths[2] > 0.02
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)


def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    network = mbconv.build(SMALL).eval()
    batch = random_batch()
    with torch.no_grad():
        logits = network(mbconv.data.transform.normalise(batch.pixels, network.preprocessing))
    own = torch.nn.functional.one_hot(batch.labels, 4).double()
    log_p = logits.double().log_softmax(1)
    smooth = 0.9 * own + 0.1 / 4
    counts = [30, 10, 5, 15]
    weights = torch.tensor([60 / (4 * n) for n in counts]).double()
    likely = logits.double().sigmoid()
    each = -(smooth * likely.log() + (1 - smooth) * (1 - likely).log())
    weighed = -(smooth * log_p * weights).sum() / weights[batch.labels].sum()
    for changes, wanted in (
        ([], -(smooth * log_p).sum(1).mean()),
        (["loss.label_smoothing=0"], -(own * log_p).sum(1).mean()),
        (["loss.kind=bce"], each.mean()),
        (["loss.balance=weights"], weighed),
        (["loss.kind=bce", "loss.balance=weights"], (each * weights).mean()),
    ):
        recipe = changed(SHORT, [*STILL, *changes])
        trainer = Trainer(network, recipe, PLAIN, total=1, counts=counts)
        assert trainer.backward(batch).item() == pytest.approx(wanted.item(), rel=1e-4), changes


def test_mixed_pictures_are_learnt_by_their_shares() -> None:
    """On pictures that are mixed with their like nothing changes; with others the loss rises."""
    torch.manual_seed(0)
    network = mbconv.build(SMALL)
    pixels = random_batch().pixels[:1].expand(8, -1, -1, -1).contiguous()
    batch = Batch(pixels, torch.full((8,), 2), ())
    losses = [
        Trainer(network, changed(SHORT, [*STILL, *changes]), PLAIN, total=1).backward(batch).item()
        for changes in ((), ("augmentation.mixup=1",), ("augmentation.cutmix=1",))
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_a_phase_decides_dropout_and_mixing() -> None:
    network = mbconv.build(SMALL)
    phases = (Phase(32, 2, dropout=0.1), Phase(32, 1, dropout=0.6, mixup=0.5))
    trainer = Trainer(network, Recipe(name="t", phases=phases), PLAIN, total=6)
    rates = []
    for index in range(6):
        trainer.step(random_batch(), index, seed=0)
        rates.append(network.head.dropout.p)
    assert rates == [0.1] * 4 + [0.6] * 2
    Trainer(network, SHORT, PLAIN, total=1).step(random_batch(), 0, seed=0)
    assert network.head.dropout.p == SMALL.dropout


def test_a_share_of_the_rate_goes_to_each_layer() -> None:
    network = mbconv.build(SMALL)
    recipe = changed(SHORT, ["transfer.layer_decay=0.5", "schedule.warmup=0"])
    trainer = Trainer(network, recipe, PLAIN, total=4)
    trainer.step(random_batch(), 1, seed=0)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == [pytest.approx(trainer.rate(1) * 0.5 ** (4 - i // 2)) for i in range(10)]


@pytest.mark.parametrize("all_decay", [False, True])
def test_decay_spares_norms_and_biases(all_decay: bool) -> None:
    network = mbconv.build(SMALL)
    change = f"optimizer.bias_decay={str(all_decay).lower()}"
    recipe = changed(SHORT, ["optimizer.weight_decay=0.3", change])
    optimizer = Trainer(network, recipe, PLAIN, total=1).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    for name, parameter in network.named_parameters():
        spared = not all_decay and (".norm." in name or name.endswith("bias"))
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name


def test_the_moving_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    network = mbconv.build(SMALL)
    recipe = changed(SHORT, ["regularization.ema_decay=0.3"])
    trainer = Trainer(network, recipe, PLAIN, total=4)
    mean = {name: value.clone().double() for name, value in network.state_dict().items()}
    for index in range(4):
        trainer.step(random_batch(), index, seed=0)
        decay = 0.0 if index == 0 else min(0.3, (1 + index) / (10 + index))
        for name, value in network.state_dict().items():
            mean[name] = decay * mean[name] + (1 - decay) * value.double()
    for name, value in trainer.ema.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-5, atol=1e-6)


def test_the_recipe_decides_the_drop_path() -> None:
    network = mbconv.build(SMALL)
    recipe = changed(SHORT, ["regularization.drop_path=0.4"])
    Trainer(network, recipe, PLAIN, total=1)
    rates = [m.rate for m in network.modules() if isinstance(m, DropPath)]
    expected = SMALL.replace(drop_path=0.4).drop_path_rates()
    assert rates == [expected[0], expected[3]]  # the blocks with a shortcut
    assert network.spec == SMALL


@pytest.mark.parametrize(
    ("own", "asked", "taken"), [(0.01, "0.1", 0.1), (0.3, "0.1", 0.3), (0.01, "null", 0.01)]
)
def test_the_recipe_raises_the_momentum_of_batch_norms(
    own: float, asked: str, taken: float
) -> None:
    network = mbconv.build(SMALL.replace(bn_momentum=own))
    Trainer(network, changed(SHORT, [f"transfer.norm_momentum={asked}"]), PLAIN, total=1)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {taken}
    assert network.spec.bn_momentum == own
