"""A failed step, layer by layer, in a terminal."""

import math

Values = dict[str, float]


def replay_lines(step: int, loss: float, outputs: Values, gradients: Values) -> list[str]:
    """A line a layer with the largest magnitudes of its output and of its weights' gradients."""
    of_layer: Values = {}
    for name, value in gradients.items():
        layer = name.rpartition(".")[0]
        before = of_layer.get(layer, 0.0)
        of_layer[layer] = math.nan if math.isnan(before + value) else max(before, value)
    names = list(dict.fromkeys([*outputs, *of_layer]))
    width = max(map(len, names), default=0)
    lines = [f"step {step}: loss {loss:g}", f"{'layer':{width}}     output   gradient"]
    for name in names:
        figures = [_figure(values.get(name)) for values in (outputs, of_layer)]
        lines.append(f"{name:{width}} {figures[0]:>10} {figures[1]:>10}")
    return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
