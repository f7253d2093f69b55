"""Everything fits one sitting, and only `runtime/` knows on what kind of device tensors are."""

import ast
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC, BENCHMARKS = ROOT / "src" / "disa", ROOT / "benchmarks"
FILES = [path for folder in (SRC, BENCHMARKS) for path in sorted(folder.rglob("*.py"))]
WITHOUT_DEVICES = [path for room in ("core", "models") for path in sorted((SRC / room).rglob("*.py"))]

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS, MOST_UNFORMATTED = 400, 80, 9, 20
LARGEST_WHEEL = 20_000_000
KINDS = ("cpu", "cuda", "mps")
UNFORMATTED = "# fmt: " + "skip"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def too_large(source: str) -> Iterator[str]:
    """What exceeds the bounds in a module."""
    if (lines := len(source.splitlines())) > MOST_LINES:
        yield f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION:
            yield f"{node.name}: {lines} lines"
        if (count := len(parameters(node.args))) > MOST_PARAMETERS and not is_kernel(node):
            yield f"{node.name}: {count} parameters"


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles a function: every stride and size is a parameter of its own."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def parameters(arguments: ast.arguments) -> list[str]:
    """The names that a caller gives values for."""
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    names = [argument.arg for argument in every if argument is not None]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def devices_named(source: str) -> Iterator[str]:
    """Where a module asks for a kind of device, or names one."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if text.partition(":")[0] in KINDS:
                yield f"line {node.lineno}: {text!r}"
            case ast.Attribute(attr="type", value=ast.Name(id="device") | ast.Attribute(attr="device")):
                yield f"line {node.lineno}: device.type"
            case ast.Attribute(attr=("cuda" | "mps" | "is_cuda" | "is_cpu" | "is_mps" | "device_type") as attribute):
                yield f"line {node.lineno}: .{attribute}"
            case ast.Name(id="device_type") | ast.arg(arg="device_type") | ast.keyword(arg="device_type"):
                yield f"line {node.lineno}: device_type"
            case _:
                pass


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_functions_and_parameter_lists_are_small(path: Path) -> None:
    assert not list(too_large(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("folder", [SRC, BENCHMARKS], ids=name_of)
def test_the_formatter_decides_the_layout(folder: Path) -> None:
    counts = {name_of(path): path.read_text(encoding="utf-8").count(UNFORMATTED) for path in folder.rglob("*.py")}
    assert sum(counts.values()) <= MOST_UNFORMATTED, {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("path", WITHOUT_DEVICES, ids=name_of)
def test_core_and_models_name_no_kind_of_device(path: Path) -> None:
    assert not list(devices_named(path.read_text(encoding="utf-8")))


def test_the_wheel_is_small() -> None:
    """A wheel is a zip of the package: its files deflated, and little more."""
    files = [path for path in SRC.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= LARGEST_WHEEL


# --- the checks themselves --------------------------------------------------------------------------------------------


def function(signature: str, lines: int) -> str:
    return f"def f({signature}):\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, ["401 lines"]),
        (function("", 80), []),
        (function("", 81), ["f: 81 lines"]),
        ("class A:\n    " + function("", 81).replace("\n", "\n    "), ["f: 81 lines"]),
        (function("a, b, /, c, d, *e, f, g, h, **i", 2), []),
        (function("a, b, /, c, d, *e, f, g, h, i, **j", 2), ["f: 10 parameters"]),
        (function("self, a, b, c, d, e, f, g, h, i", 2), []),
        ("async " + function("cls, a, b, c, d, e, f, g, h, i, j", 2), ["f: 10 parameters"]),
        ("@triton.jit\n" + function("a, b, c, d, e, f, g, h, i, j", 81), ["f: 81 lines"]),
    ],
)
def test_what_is_too_large_is_seen(source: str, expected: list[str]) -> None:
    assert list(too_large(source)) == expected


@pytest.mark.parametrize(
    "source",
    [
        "x.to('cpu')",
        'torch.zeros(3, device="cuda:1")',
        "def f(device='mps'): pass",
        "x.device.type == kind",
        "kind = device.type",
        "torch.cuda.synchronize()",
        "torch.backends.mps.is_available()",
        "x.is_cuda",
        "torch.autocast(device_type=kind)",
        "device_type = kind",
        "def f(device_type): pass",
    ],
)
def test_a_kind_of_device_is_seen(source: str) -> None:
    assert len(list(devices_named(source))) == 1


@pytest.mark.parametrize("source", ["x.to(y.device)", '"""On a cpu: slower."""', "x.dtype.type", "'cpus'", "x.cpu()"])
def test_other_words_are_no_kinds_of_device(source: str) -> None:
    assert not list(devices_named(source))
