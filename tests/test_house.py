"""The floor plan: which way imports go, and that README's table leads where it says."""
import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"config", "errors", "options"}
# What a room of vdd_model may import, beside itself. `weights` holds no code.
ROOMS = {
    "config": {"errors"}, "errors": set(), "options": {"config"},
    "diffusion": BASE,
    "networks": BASE | {"diffusion"},
    "checkpoint": BASE | {"networks", "media"},             # of media: `written_aside`
    "cpu": BASE | {"networks"},
    "inference": BASE | {"networks", "diffusion", "checkpoint", "cpu", "measure"},            # of measure: the optical flow
    "media": BASE,
    "measure": BASE | {"media"},
}
ROOMS["app"] = {*ROOMS}
DOORS = {"pipeline": {"inference"}, "motion": {"measure"}}      # names of the first version, of a line each
ROOMS |= DOORS
ROOMS["__init__"], ROOMS["__main__"] = {"inference", "options"}, {"app"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file of this repository imports, anywhere in it but under TYPE_CHECKING, as paths without `.py`."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
              for n in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            start = package[:len(package) - node.level + 1] if node.level else ()
            start += tuple(node.module.split(".")) if node.module else ()
            names = [start + (alias.name,) for alias in node.names]
        for name in names:
            while name and not (ROOT.joinpath(*name).with_suffix(".py").exists() or (ROOT.joinpath(*name) / "__init__.py").exists()):
                name = name[:-1]
            if name:
                found.add("/".join(name))
            elif isinstance(node, ast.Import) or not node.level:
                found.add((node.names[0].name if isinstance(node, ast.Import) else node.module).split(".")[0])
    return frozenset(found)


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_arrows_between_the_parts():
    never = {"vdd_model": {"comfy", "comfy_api", "nodes", "train", "folder_paths"}, "nodes": {"train"}, "train": {"nodes"}}
    for path in files(*never):
        assert not {name.split("/")[0] for name in imports(path)} & never[path.relative_to(ROOT).parts[0]], path


@pytest.mark.parametrize("path", files("vdd_model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_between_the_rooms(path):
    room = path.relative_to(ROOT / "vdd_model").parts[0].removesuffix(".py")
    others = {name.split("/")[1] for name in imports(path) if name.startswith("vdd_model/")} - {room}
    if path.name == "maxim.py":                             # the prior is loaded with the layers that it runs fast with
        others.discard("cpu")
    assert others <= ROOMS[room], f"{room} imports {others - ROOMS[room]}"


def test_errors_for_people_have_one_root():
    kinds = {node.name: {ast.unparse(base) for base in node.bases} for path in files("vdd_model", "train", "nodes")
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef) and "Error" in node.name}
    assert len(kinds) >= 5 and {name for name, bases in kinds.items() if "UserError" not in bases} == {"UserError"}


def test_no_circles():
    graph = {str(path.relative_to(ROOT).with_suffix("")).removesuffix("/__init__"): imports(path)
             for path in files("vdd_model", "train", "nodes")}
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for other in sorted(graph[name]):
            if other != name:
                visit(other)
        done.add(path.pop())
    for name in sorted(graph):
        visit(name)


def test_few_rooms_and_a_short_core():
    rooms = [p for p in (ROOT / "vdd_model").iterdir() if p.name != "__pycache__" and p.stem not in DOORS]
    assert len(rooms) <= 14, sorted(p.name for p in rooms)
    core = files(*(f"vdd_model/{room}" for room in ("networks", "diffusion", "inference", "checkpoint")))
    core = [path for path in core if path.stem not in ("maxim", "prior", "fusion", "temporal")]      # the paper's; the prior is not
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in core) < 3000


def test_the_table_of_the_paper_leads_to_code():
    """Every `file.py` and `name` of a row exists, the name in one of the row's files."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("| In the paper |")[2].splitlines()[2:] if line.startswith("|")]
    assert len(rows) >= 9 and all(f"eq. {n}" in " ".join(rows) for n in (1, 2, 3, 4))
    for row in rows:
        quoted = re.findall(r"`([^`]+)`", row)
        paths = [ROOT / name for name in quoted if "/" in name]
        assert paths and all(path.exists() for path in paths), row
        defined = {node.name for path in paths if path.suffix == ".py" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                   if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        for name in (name for name in quoted if "/" not in name):
            assert set(name.split(".")) <= defined, f"{name}: {row}"
