"""Training within a given time: how fast steps are, how many epochs fit, when to stop early."""

from collections.abc import Callable

from mbconv.errors import UserError
from mbconv.training.machine import Machine
from mbconv.training.recipe import Phase, Recipe
from mbconv.training.recipes import SMALLEST

FINISH = 8.0  # seconds for the final score, the explained mistakes and the report
# A step takes this much longer while pictures are read beside it (measured on two cores).
LOADED = 1.35


def pixel_rate(recipe: Recipe, machine: Machine, processes: int = 1) -> float:
    """Training pixels a second of all processes, from the trials of `choose_machine` in one."""
    seconds: float = min(trial["ms_per_step"] for trial in machine.trials) / 1000
    pixels = min(16, recipe.batch_size) * recipe.phases[0].resolution ** 2
    return float(processes * pixels / seconds / LOADED)


def fit_budget(
    make: Callable[[int, int], Recipe],
    recipe: Recipe,
    rate: float,
    seconds: float,
    sizes: dict[str, int],
) -> Recipe:
    """Epochs, and if need be a smaller resolution, so that the run takes `seconds` from here.

    `make(resolution, epochs)` gives recipes like `recipe`; `rate` is training pixels a second,
    `sizes` the pictures in each split. A fourth of a training step is a forward pass; an eighth of
    the time is kept in reserve.
    """
    at_epoch = sizes["train"] + 0.5 * sizes.get("val", 0)  # raw and averaged weights
    once = sizes.get("test", sizes.get("val", 0))
    once += sizes["train"] if recipe.transfer.head_resolution else 0
    grown = recipe.work(recipe.phases[-1]) / recipe.resolution**2  # times the first network

    def left(side: int) -> float:
        return seconds * 7 / 8 - 0.25 * once * grown * side**2 / rate

    sides = list(range(recipe.resolution, SMALLEST - 1, -32)) or [recipe.resolution]
    enough = (side for side in sides if 3 * at_epoch * grown * side**2 / rate <= left(side))
    side = next(enough, sides[-1])  # with fewer than three epochs, smaller pictures teach more
    return plan_epochs(lambda epochs: make(side, epochs), round(at_epoch), left(side), rate)


def plan_epochs(
    make: Callable[[int], Recipe], pictures: int, seconds: float, pixel_rate: float
) -> Recipe:
    """`make(epochs)` with as many epochs as fit into `seconds` of stepping.

    `pixel_rate` is training pixels a second. Raises UserError where not one epoch fits.
    """
    for epochs in range(200, 0, -1):
        recipe = make(epochs)
        pixels = sum(p.epochs * recipe.work(p) for p in recipe.phases) * pictures
        if pixels / pixel_rate <= seconds:
            return recipe
    raise UserError(
        f"The budget leaves {max(0, seconds):.0f} s for training and one epoch at "
        f"{recipe.resolution} px takes about {pixels / pixel_rate:.0f} s here. Give a longer "
        f"--budget or a smaller --resolution."
    )


def fits_another(recipe: Recipe, phase: Phase, seconds: float, left: float) -> bool:
    """Whether another epoch, and the end of the run, fit into the `left` seconds.

    `seconds` is what the last epoch took, which was of `phase`; a later one may cost more.
    """
    most = max(map(recipe.work, recipe.phases))
    return 1.15 * seconds * most / recipe.work(phase) + FINISH <= left
