"""geffnet's networks (github.com/rwightman/gen-efficientnet-pytorch): timm's ancestor, same keys.

Its `tf_efficientnet_es`, `em` and `el` are left out: they pad some convolutions as TensorFlow does
and others as torch does, which no spec says.
"""

from mbconv.arch.table import TORCH
from mbconv.weights.libraries import timm
from mbconv.weights.libraries.network import Library, table

_ADVPROP = {f"tf_{name}_ap": name for name in timm.EFFICIENTNET[:9]}
_STUDENT = {f"tf_{name}_ns": name for name in (*timm.EFFICIENTNET[:8], "efficientnet_l2")}
_STUDENT["tf_efficientnet_l2_ns_475"] = "efficientnet_l2"
_ALIASES = {"mnasnet_a1": "mnasnet_a1", "mnasnet_b1": "mnasnet_b1"}
_V2 = ("mobilenetv2_100", "mobilenetv2_140")

LIBRARY = Library(
    "geffnet",
    table(
        {n: n for n in (*timm.EFFICIENTNET, *timm.LITE, *timm.EDGE, *timm.V3, *timm.V3_MINIMAL)}
        | {n: n for n in _V2}
        | timm.MNASNET
        | _ALIASES,
        timm.layout,
        TORCH,
    )
    | table({f"tf_{n}": n for n in timm.EFFICIENTNET[:9]} | _STUDENT, timm.layout, timm.TF)
    | table(
        {f"tf_{n}": n for n in (*timm.LITE, *timm.V3, *timm.V3_MINIMAL)} | _ADVPROP,
        timm.layout,
        timm.TF,
        timm.HALF,
    ),
    pointwise=timm.LIBRARY.pointwise,
)
