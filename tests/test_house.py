"""The house: a broken install file or a circle of imports costs every user, not one."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOMAINS = ("satellite", "simulated", "text", "visual_domains", "web_images")
ROOMS = {
    "foundation": set(),
    "curation": {"foundation"},
    "training": {"foundation", "curation"},
    "pretrain": {"foundation", "curation", "training"},
    "text_lm": {"foundation", "curation", "training"},
    "satellite": {"foundation", "curation", "training", "pretrain"},
    "eval": {"foundation"},
    "experiments": {"foundation", "curation", "training", "pretrain", "text_lm", "satellite", "eval"},
    "benchmarks": {"foundation", "curation", "training", "pretrain", "text_lm", "experiments"},
}
# within experiments: the engine knows no page, pages know no domain, domains know nothing of each other
SUITES = {"engine": set(), "pages": {"engine"}} | {domain: {"engine", "pages"} for domain in DOMAINS}
# within curation, lowest first; what stands beside them there ties them together
PARTS = {
    "store": {"group"},
    "pools": set(),
    "kmeans": {"group", "store"},
    "embedding": {"kmeans", "pools", "store"},
    "trees": {"group", "kmeans", "pools", "store"},
    "pages": {"pools", "soundness", "trees"},
    "preparation": {"embedding", "group", "kmeans", "pages", "pools", "store"},
}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


POSITIONAL = 8  # arguments; a call with more of them cannot be read, and two of one type swap unseen
# compiled kernels: neither Numba nor Triton takes keyword-only arguments
KERNELS = {
    "curation/kmeans/activity.py": {"_decide_among_moved", "_decide_row_among_moved", "_search_moved"},
    "curation/kmeans/assignment.py": {"_search"},
    "curation/kmeans/fused.py": {"_best_two"},
    "curation/kmeans/greedy.py": {"_greedy"},
    "curation/kmeans/tiles.py": {"multiply_tile"},
    "curation/kmeans/update.py": {"_add_segments"},
}


def imported(path: Path) -> set[str]:
    """Modules that a file imports at its top level, function bodies left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` of curation/tree.py is curation.x
            here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*here, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def bounds(requirements: list[str]) -> dict[str, str]:
    parsed = [re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", requirement) for requirement in requirements]
    return {match[1].lower(): match[2] for match in parsed if match}


def test_conda_environment_agrees_with_pyproject():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = bounds(pyproject["dependencies"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = bounds([item for item in conda if isinstance(item, str)])
    for name, conda_name in {"torch": "pytorch-gpu", "faiss-cpu": "faiss-gpu"}.items():
        wanted[conda_name] = wanted.pop(name)
    # pip refuses options such as --no-deps in conda's pip section, and two channels mix two builds of torch
    assert all(isinstance(item, str) for item in conda)
    assert found.pop("python") == pyproject["requires-python"].removeprefix(">=")
    assert found == wanted


@pytest.mark.parametrize(
    "name",
    [
        "curation",
        "experiments",
        "benchmarks",
        "configs",
        "scripts",
        "tests",
        "docs",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
    ],
)
def test_what_the_readme_promises_is_there(name: str):
    assert (ROOT / name).exists()


def test_links_and_files_of_the_documents_are_there():
    for page in (ROOT / "README.md", ROOT / "docs/user-guide.md", ROOT / "docs/architecture.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        files = re.findall(r"`((?:curation|scripts|tests)/[\w/]+\.(?:py|sh))`", page.read_text())
        missing = [link for link in links if not (page.parent / link).exists()]
        missing += [file for file in files if not (ROOT / file).exists()]
        assert not missing, f"{page.name} points to {missing}"


def test_constraints_pin_every_core_dependency():
    pins = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(bounds(pyproject["dependencies"])) <= pins


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_whom_they_may_know(path: Path):
    room = path.relative_to(ROOT).parts[0]
    whole = {node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))}
    names = {alias.name for node in whole if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in whole if isinstance(node, ast.ImportFrom) and node.module}
    strangers = {name.split(".")[0] for name in names} & (set(ROOMS) | {"scripts", "tests"}) - ROOMS[room] - {room}
    assert not strangers


@pytest.mark.parametrize("suite", SUITES)
def test_engine_pages_and_domains_of_the_experiments_stay_apart(suite: str):
    names = {name for path in (ROOT / "experiments" / suite).rglob("*.py") for name in imported(path)}
    inside = {name.split(".")[1] for name in names if name.startswith("experiments.")}
    assert inside <= SUITES[suite] | {suite}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_curation_import_only_what_is_below_them(part: str):
    names = {name for path in (ROOT / "curation" / part).rglob("*.py") for name in imported(path)}
    assert {name.split(".")[1] for name in names if name.startswith("curation.")} <= PARTS[part] | {part}


def test_the_drawing_of_the_house_names_every_room_and_whom_it_imports():
    page = (ROOT / "docs/architecture.md").read_text()
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", page, re.M)}
    assert set(ROOMS) <= set(rows)
    for room in ("curation", "training", "pretrain", "text_lm", "benchmarks"):
        assert {name.strip() for name in rows[room].split(",")} == ROOMS[room]
    assert rows["satellite"] == "the same, and pretrain"
    assert ROOMS["satellite"] == ROOMS["text_lm"] | {"pretrain"}
    assert rows["experiments"] == "all of them"
    assert ROOMS["experiments"] == set(ROOMS) - {"experiments", "benchmarks"}


def test_no_circle_between_modules():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: imported(path) & set(names) - {name} for name, path in names.items()}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] <= done]:
        done |= set(ready)
    assert done == set(graph), f"a circle runs through {sorted(set(graph) - done)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_about(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_lock_is_of_the_versions_that_constraints_pin_and_holds_what_the_extra_dev_asks_for():
    def pins(name: str) -> dict[str, str]:
        lines = [line.partition(";")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        parts = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in parts}

    lock, constraints = pins("requirements.lock"), pins("constraints.txt")
    assert lock.items() <= constraints.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = re.match(r"curated-ssl\[(.+)\]", extras["dev"][0])
    assert named, "the extra dev begins with the extras that it takes in"
    wanted = [*project["dependencies"], *extras["dev"][1:]]
    wanted += [line for extra in named[1].split(",") for line in extras[extra] if not line.startswith("curated-ssl")]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[><=; ]", line)[0]).lower() for line in wanted}
    assert names <= set(lock), f"renew requirements.lock: {sorted(names - set(lock))} are not in it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_takes_nine_positional_arguments(path: Path):
    whole = ast.parse(path.read_text())
    methods = {
        item
        for node in ast.walk(whole)
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(ast.unparse(decorator) == "staticmethod" for decorator in item.decorator_list)
    }
    long = set()
    for node in ast.walk(whole):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            n = len(node.args.posonlyargs) + len(node.args.args) - (node in methods)  # self is not counted
            long |= {getattr(node, "name", "lambda")} if n > POSITIONAL else set()
        elif isinstance(node, ast.Call) and len(node.args) > POSITIONAL:  # of a dataclass, too
            long.add(ast.unparse(node.func).partition("[")[0])
    assert long == KERNELS.get(str(path.relative_to(ROOT)), set()), "make the later ones keyword-only, or a dataclass"


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"foundation"}))
def test_every_room_sets_how_threads_wait_before_torch_is_loaded(room: str):
    """OpenMP reads it once, when it is loaded: threads that spin are many times slower on a busy machine."""
    tree = ast.parse((ROOT / room / "__init__.py").read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert "foundation" in names
    assert not {name.split(".")[0] for name in names} & {"torch", "numba", "faiss", "sklearn"}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.stem)
def test_a_mistake_at_a_script_is_one_line(path: Path):
    """Who mistypes a word of a benchmark gets the line that every command gives, and no traceback."""
    takes_words = "argparse" in (text := path.read_text()) or "sys.argv" in text
    own = path.name == "install.py"  # runs before anything is installed
    assert own or not takes_words or "run_command(" in text
