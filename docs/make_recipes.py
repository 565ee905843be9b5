"""Writes docs/recipes.md: the ways to train, what they are for, and every field of a recipe.

python docs/make_recipes.py
"""

import inspect
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from mbconv.data.augmentation import Augmentation
from mbconv.training.recipe import (
    Loss,
    Optimizer,
    Phase,
    Recipe,
    Regularization,
    Schedule,
    Transfer,
)
from mbconv.training.recipes import RECIPES

PAGE = Path(__file__).with_name("recipes.md")
GROUPS: dict[str, type] = {
    "phases.0": Phase,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "augmentation": Augmentation,
    "loss": Loss,
    "regularization": Regularization,
    "transfer": Transfer,
}
PLAIN = ("batch_size", "checkpointing")  # fields of the recipe itself
HEAD = """# Recipes

Made by `python docs/make_recipes.py`.

A recipe is everything that decides how a network learns, apart from the network and the pictures.
Without `--recipe`, `mbconv train` takes `finetune` where the network has pretrained weights and
`scratch` where it has none.

```
mbconv recipe list
mbconv recipe show finetune
mbconv train photos --recipe scratch_small --model small.json --resolution 128 --epochs 10
mbconv train photos --set optimizer.learning_rate=0.001 --set augmentation.policy=trivialaugment
mbconv train photos --set loss.balance=sampling
```

`--set` takes the paths that `recipe show` lists, phases by number (`phases.0.epochs=3`), and values
as JSON or words; a path that there is not gets the nearest ones as an answer. The recipe that was
used, changes included, is in the run's `config.json`, and `mbconv train DATA --config config.json`
trains by it again. In Python: `mbconv.train(..., recipe="scratch", changes=["optimizer.clip=1"])`,
or a whole `mbconv.training.recipe.Recipe` as `recipe`.

What a step draws depends on (seed, step) alone, what a picture draws on (seed, epoch, picture), so
that an interrupted run ends as the uninterrupted one would have.

## Finding numbers

- `mbconv lr-find photos` trains a hundred steps at ever higher learning rates, prints the losses
  and suggests a peak: the last rate at which the smoothed loss is not clearly above its lowest. The
  curve goes to `lr-find.html`.
- `mbconv fit-batch MODEL` measures a training step's memory at three batch sizes, each in a process
  of its own, and shows the division that gives the largest batch. A larger one can be computed in
  parts: `--set batch_size=256 --set optimizer.micro_batch=32`; batch norms then see 32 pictures.
- A loss or gradient that is not finite stops the run at once, with the first layer where it arose.
  The run folder keeps the batch and the weights before the step in `failed_step.pt`;
  `mbconv replay RUN` computes that step again and lists every layer's largest output and gradient.

## The recipes
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, make in RECIPES.items():
        parts.append(f"\n### `{name}`\n\n{inspect.getdoc(make)}\n")
    parts.append("\n## Fields\n\n| path | default | |\n|---|---|---|\n")
    for name in PLAIN:
        default = json.dumps(Recipe.__dataclass_fields__[name].default)
        parts.append(f"| `{name}` | `{default}` | {_comments(Recipe)[name]} |\n")
    for group, kind in GROUPS.items():
        notes = _comments(kind)
        for f in fields(kind):
            default = "" if f.default is MISSING else f"`{json.dumps(f.default)}`"
            texts = (_choices(f.type), notes.get(f.name, ""))
            note = "; ".join(text for text in texts if text)
            parts.append(f"| `{group}.{f.name}` | {default} | {note} |\n")
    return "".join(parts)


def covered() -> bool:
    """Whether the table has every group of a recipe."""
    plain = {"name", *PLAIN}
    groups = {group.partition(".")[0] for group in GROUPS}
    return {f.name for f in fields(Recipe)} == groups | plain


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is None or not all(isinstance(a, str) for a in get_args(annotation)):
        return ""
    return "one of " + ", ".join(f"`{choice}`" for choice in get_args(annotation))


def _comments(kind: type) -> dict[str, str]:
    """The comment behind each field in the source."""
    found = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.MULTILINE)
    return {name: note.replace("None:", "null:") for name, note in found}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
