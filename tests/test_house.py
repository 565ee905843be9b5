"""The house itself: import order of the storeys, public names, what help costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mbconv

PACKAGE = Path(mbconv.__file__).parent
# From the ground up; a storey imports those below it and its own.
STOREYS = (
    ("errors",),
    ("files",),
    ("record", "preprocessing", "interval", "cores"),
    ("arch",),
    ("kernels",),
    ("nn",),
    ("weights",),
    ("data",),
    ("runtime",),
    ("measure",),
    ("growing",),
    ("report",),  # no storey between it and `arch` may be imported: see below
    ("training",),
    ("export", "shrinking"),
    ("study",),
    ("serve",),
    ("comparing",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def storey(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_storeys(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
    return {name.split(".")[1] for name in names if name.startswith("mbconv.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_storey_imports_only_those_below(path: Path) -> None:
    own = storey(path)
    for other in imported_storeys(path):
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {other}"
    if own == "report":
        assert imported_storeys(path) <= {"errors", "files", "record", "interval", "arch", "report"}


def test_public_names() -> None:
    assert mbconv.__all__ == [
        "Arm",
        "Block",
        "Cost",
        "Encoder",
        "Grid",
        "MBConvNet",
        "Prediction",
        "Predictor",
        "Preprocessing",
        "Record",
        "Run",
        "Spec",
        "Stage",
        "UserError",
        "build",
        "cost",
        "create_model",
        "evaluate",
        "export_model",
        "get_spec",
        "grow",
        "list_specs",
        "load",
        "push_to_hub",
        "resume",
        "run_study",
        "save",
        "save_pretrained",
        "scale",
        "shrink",
        "train",
        "with_output_stride",
    ]
    for name in mbconv.__all__:
        assert callable(getattr(mbconv, name))
        assert getattr(mbconv, name).__doc__
    assert dir(mbconv) == sorted(mbconv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mbconv.trian


@pytest.mark.parametrize(
    "code",
    [
        "import mbconv; mbconv.Spec; mbconv.get_spec('efficientnet_b0'); mbconv.cost",
        "from mbconv.cli import main; main(['--help'], standalone_mode=False)",
        "from mbconv.cli import main; main(['info', 'efficientnet_b0'], standalone_mode=False)",
        "from mbconv.cli import main; main(['info', 'timm:mnasnet_100'], standalone_mode=False)",
        "import mbconv.report.run",
        "from mbconv.cli import main; main(['grow', 'efficientnet_b0', '--to', 'efficientnet_b1', "
        "'--plan'], standalone_mode=False)",
        "from mbconv.cli import main; main(['recipe', 'list'], standalone_mode=False)",
        "from mbconv.cli import main; main(['runs', '.'], standalone_mode=False)",
        "import mbconv.report.comparison",
        "import mbconv.report.study",
        "from mbconv.cli import main; main(['study', '--list'], standalone_mode=False)",
        "import mbconv.report.costs_page, mbconv.report.contest_lines",
        "from mbconv.cli import main; main(['recipe', 'show', 'scratch'], standalone_mode=False)",
    ],
)
def test_torch_stays_unimported(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm'} & set(sys.modules)"
    script = f"import sys\n{code}\nassert not {heavy}, {heavy}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_storeys_on_the_ground_import_no_torch() -> None:
    for path in MODULES:
        if storey(path) in {
            "errors",
            "files",
            "record",
            "preprocessing",
            "interval",
            "arch",
            "report",
        }:
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text, path
            assert "from torch" not in text, path
