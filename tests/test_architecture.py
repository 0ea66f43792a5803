"""What keeps the package readable: imports go one way, heavy libraries stay where they belong, nothing grows long."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cvtune"

# From the ground up. A module may import modules of its own layer, without a cycle, and of the layers above it in this
# list. A name stands for the module and, if it is a package, for all modules in it. "cvtune" is the facade __init__.py.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "durable", "printable", "probe", "allocation"),
    ("upload",),
    (
        "fields",
        "kinds",
        "recipe",
        "epoch",
        "objective",
        "checks",
        "gpu_checks",
        "building",
        "room",
        "packing",
        "on_gpu",
    ),
    ("domains", "space", "priors", "schedulers", "searchers", "sections"),
    ("study",),
    ("workflow", "rule", "verdict"),
    (
        *("cvtune", "usercode", "loops", "lease", "event", "compact", "journal", "checkpoint", "pulse", "signals"),
        *("augment", "transforms", "pixels", "regularize", "data", "models", "optim", "metrics", "ranking", "loss"),
        *("microbatch", "device", "team", "mixing", "normalize", "recorded"),
        *("device_pixels", "device_augment", "device_loader", "mps", "heap"),
        *("strips", "probe_set", "tasks"),
    ),
    ("history", "health", "train", "backward", "evaluation", "own_loop", "folds", "lightning"),
    ("model_file",),
    ("trained",),
    ("rates", "noise", "schedule", "controls", "confirm", "bootstrap", "evidence", "suggest", "warm"),
    ("explained", "population", "pb2", "ray_schedulers", "board", "analysis"),
    (
        "epoch_table",
        "ranges",
        "data_checks",
        "results",
        "fetch",
        "preflight",
        "report",
        "predict",
        "card",
        "best",
        "onnx_file",
    ),
    ("optuna_storage", "exports", "past", "mapping"),
    ("track",),
    ("screen", "sweep", "ledger", "study_folder"),
    ("phases", "forecast", "tune", "crew", "actor", "follow", "gauge", "cluster", "rehearsal"),
    ("engine", "doctor", "imports"),
    ("experiment",),
    ("looking", "plan", "using", "advise"),
    ("reporting", "inspecting"),
    ("cli",),
    ("job",),
)

FENCES: dict[str, tuple[str, ...]] = {  # library: the only modules that may import it
    "ray": (
        *("tune", "actor", "engine", "cluster", "doctor", "upload", "job"),
        *("board", "ray_schedulers", "population", "pb2", "explained"),
    ),
    "optuna": ("suggest", "optuna_storage"),
    "wandb": (
        "track.client",
        "track.past_runs",
        "track.publish",
    ),
    "wandb_workspaces": ("track.publish",),
    "lightning": ("lightning",),
    "pytorch_lightning": ("lightning",),
    "albumentations": ("transforms",),
    "pyarrow": ("compact", "results", "epoch_table", "data", "exports", "past"),
    "matplotlib": ("report",),
    "plotly": ("report",),
    "jinja2": ("report",),
    "huggingface_hub": ("models.weights",),
    "onnx": ("onnx_file",),
    "onnxruntime": ("onnx_file",),
    "onnxscript": ("onnx_file",),
    "timm": ("models.extras",),
    "segmentation_models_pytorch": ("models.extras",),
}

LIGHT = (
    "cvtune",
    "cvtune.probe",
    "cvtune.study",
    "cvtune.journal",
    "cvtune.cli",
    "cvtune.report.write",
)
HEAVY = ("torch", "ray", "albumentations", "wandb")

MODULE_LINES = 400
FUNCTION_LINES = 60

WITHOUT_DOCSTRING = {  # public all the same
    # sections whose every field is described by `fields.field`
    "recipe.Data", "recipe.Augment", "recipe.Regularize", "recipe.Model", "recipe.Optim", "recipe.Loss",
    "recipe.Train",
    "sections.Source", "sections.Budget", "sections.Resources", "sections.Confirm", "sections.Tracking",
    # plain records that their names and fields explain
    "epoch.MetricDoc", "results.Column", "cli.Resume", "looking.SyncMode",
    # what runs after `if __name__ == "__main__"`
    "preflight.main",
}  # fmt: skip


def name_of(path: Path) -> str:
    """'data.store' for cvtune/data/store.py, 'data' for cvtune/data/__init__.py, 'cvtune' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "cvtune"


MODULES: dict[str, Path] = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, also within functions, but not what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            assert isinstance(child, ast.If)
            for statement in child.orelse:
                yield from nodes(statement)
        else:
            yield from nodes(child)


@cache
def imported(module: str) -> frozenset[str]:
    """Every dotted name that a module imports. `from a import b` gives 'a.b' if that is a module of ours, else 'a'."""
    found: set[str] = set()
    for node in nodes(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[module]}, line {node.lineno}: write the import with its full name"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_ours = inner.startswith("cvtune.") and inner.removeprefix("cvtune.") in MODULES
                found.add(inner if is_ours else node.module)
    return frozenset(found)


@cache
def neighbors(module: str) -> frozenset[str]:
    """The modules of cvtune that a module imports."""
    ours = {name for name in imported(module) if name == "cvtune" or name.startswith("cvtune.")}
    return frozenset(name if name == "cvtune" else name.removeprefix("cvtune.") for name in ours)


def is_within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def layer_of(module: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if is_within(module, names)]
    assert len(found) == 1, f"{module} stands in {len(found)} layers of LAYERS in {Path(__file__).name}: give it one"
    return found[0]


@each_module
def test_imports_only_modules_that_exist(module: str) -> None:
    assert not neighbors(module) - MODULES.keys()


@each_module
def test_imports_go_down(module: str) -> None:
    upward = {other for other in neighbors(module) if layer_of(other) > layer_of(module)}
    assert not upward, f"{module} (layer {layer_of(module)}) imports from above: {sorted(upward)}"


@each_module
def test_is_in_no_import_cycle(module: str) -> None:
    came_from: dict[str, str] = {}
    queue = [module]
    while queue:
        here = queue.pop()
        for there in neighbors(here) - came_from.keys():
            came_from[there] = here
            queue.append(there)
    path = [module]
    while module in came_from and (len(path) == 1 or path[-1] != module):
        path.append(came_from[path[-1]])
    assert module not in came_from, f"import cycle: {' <- '.join(path)}"


@each_module
def test_keeps_heavy_libraries_behind_their_fences(module: str) -> None:
    for library, allowed in FENCES.items():
        uses = {name for name in imported(module) if name == library or name.startswith(f"{library}.")}
        assert not uses or is_within(module, allowed), f"{module} imports {sorted(uses)}; only {allowed} may"


@pytest.mark.parametrize("name", LIGHT)
def test_import_loads_nothing_heavy(name: str) -> None:
    code = f"import json, sys, {name}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


def test_help_waits_for_neither_numpy_nor_scipy() -> None:
    code = "import json, sys, cvtune.cli; print(json.dumps([m for m in ('numpy', 'scipy') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


def test_a_trial_loads_neither_torchs_compiler_nor_scikit_learn() -> None:
    code = (
        "import json, sys; from pathlib import Path; from cvtune import Recipe; from cvtune.data import open_dataset; "
        "from cvtune.sections import Source; from cvtune.train import Run, train; "
        "small = {'max_epochs': 1, 'model.width': 4, 'data.image_size': 8, 'data.train_fraction': 0.1}; "
        "recipe = Recipe().replace(small); "
        "run = Run(recipe, open_dataset(Source(source='digits'), recipe.data, None, None, 1), device='cpu'); "
        "list(train(run)); run.load_state_dict(run.state_dict()); "
        "print(json.dumps([m for m in ('torch._dynamo', 'sympy', 'sklearn', 'pandas', 'ray') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


@each_module
def test_module_is_short(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= MODULE_LINES, f"{MODULES[module].name} has {lines} lines; split it by what it is about"


@each_module
def test_functions_are_short(module: str) -> None:
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: n for f in functions if (n := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES}
    assert not long, f"{module}: longer than {FUNCTION_LINES} lines: {long}"


@each_module
def test_has_a_subject(module: str) -> None:
    """No drawer for odds and ends, and a first line that says what the module is about."""
    assert module.rpartition(".")[2] not in ("utils", "util", "helpers", "common", "misc")
    assert ast.get_docstring(tree(module)), f"{module} has no docstring"


def public(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


@each_module
def test_public_names_have_docstrings(module: str) -> None:
    bare = {f"{module}.{node.name}" for node in public(module) if not ast.get_docstring(node)}
    assert not bare - WITHOUT_DOCSTRING


def test_lists_name_only_what_exists() -> None:
    """An entry that is left over would let a new module or function of that name through unseen."""
    assert {n for names in LAYERS for n in names} <= MODULES.keys()
    assert {f"{module}.{node.name}" for module in MODULES for node in public(module)} >= WITHOUT_DOCSTRING
