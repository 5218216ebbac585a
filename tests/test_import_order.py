"""Imports point up one list, so that the code can be read, and tested, from top to bottom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipeline", "gptjax")

# A module imports only what stands above it. A new module gets its place here.
ORDER = [
    "configs",
    "configs.base",
    "configs.rtx4070",
    "configs.rtx4070_110m",
    "configs.modern",
    "configs.rtx4070_best",
    "configs.quickstart",
    "configs.debug",
    "configs.workdir",
    "configs.flags",
    "configs.sweep",
    "data_pipeline",
    "data_pipeline.files",
    "data_pipeline.parquet",
    "data_pipeline.byte_level",
    "data_pipeline.tokenizer",
    "data_pipeline.token_store",
    "data_pipeline.statistics",
    "data_pipeline.parts",
    "data_pipeline.sample",
    "data_pipeline.workers",
    "data_pipeline.prepare",
    "data_pipeline.packing",
    "data_pipeline.subset",
    "data_pipeline.pipeline",
    "data_pipeline.browse",
    "gptjax",
    "gptjax.config",
    "gptjax.attention_chunked",
    "gptjax.compilation",
    "gptjax.attention",
    "gptjax.layers",
    "gptjax.model",
    "gptjax.loss",
    "gptjax.guard",
    "gptjax.muon",
    "gptjax.optimizer",
    "gptjax.sharding",
    "gptjax.train_step",
    "gptjax.metrics",
    "gptjax.validation",
    "gptjax.events",
    "gptjax.writers",
    "gptjax.signals",
    "gptjax.targets",
    "gptjax.step_cost",
    "gptjax.memory",
    "gptjax.hlo_traffic",
    "gptjax.target_compile",
    "gptjax.planning",
    "gptjax.scaling_law",
    "gptjax.plan_text",
    "gptjax.suggest",
    "gptjax.plan",
    "gptjax.processes",
    "gptjax.lock",
    "gptjax.digests",
    "gptjax.identity",
    "gptjax.checkpoint_files",
    "gptjax.checkpoint",
    "gptjax.saver",
    "gptjax.skipped",
    "gptjax.load",
    "gptjax.decode",
    "gptjax.sampler",
    "gptjax.generate",
    "gptjax.scoring",
    "gptjax.completion_request",
    "gptjax.completions",
    "gptjax.serve",
    "gptjax.tasks",
    "gptjax.published",
    "gptjax.benchmarks",
    "gptjax.evaluate",
    "gptjax.lm_eval_adapter",
    "gptjax.hf_architectures",
    "gptjax.hf_weights",
    "gptjax.hf_tokenizer",
    "gptjax.gguf_file",
    "gptjax.export",
    "gptjax.import_hf",
    "gptjax.initial",
    "gptjax.history",
    "gptjax.results",
    "gptjax.charts",
    "gptjax.tables",
    "gptjax.report",
    "gptjax.hooks",
    "gptjax.train",
    "gptjax.main",
    "gptjax.code_version",
    "gptjax.trials",
    "gptjax.sweep",
]

# Programs, and who else uses them as modules.
PROGRAMS = {
    "data_pipeline.browse": set(),
    "data_pipeline.prepare": {
        "data_pipeline.browse",
        "gptjax.evaluate",
        "gptjax.planning",
        "gptjax.train",
        "gptjax.trials",
    },
    "gptjax.checkpoint": {"gptjax.import_hf", "gptjax.load", "gptjax.saver", "gptjax.train"},
    "gptjax.evaluate": set(),
    "gptjax.export": set(),
    "gptjax.generate": {"gptjax.completions", "gptjax.hooks", "gptjax.lm_eval_adapter"},
    "gptjax.import_hf": set(),
    "gptjax.lm_eval_adapter": set(),
    "gptjax.main": {"gptjax.sweep"},
    "gptjax.plan": {"gptjax.train"},
    "gptjax.report": {"gptjax.hooks"},
    "gptjax.serve": set(),
    "gptjax.sweep": set(),
}

# Functions that may print, besides the `main` of a program.
PRINTERS = {("configs.flags", "call"), ("configs.flags", "_parse")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, modules: set[str]) -> set[str]:
    """All modules that `tree` imports, at the top or inside functions, as full names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:  # `from gptjax import model` names a module, too
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
    return found


TREES = {
    module_name(path): ast.parse(path.read_text())
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
IMPORTS = {name: imports_of(tree, set(TREES)) for name, tree in TREES.items()}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in PACKAGES}


def test_the_list_names_every_module_once():
    assert sorted(ORDER) == sorted(TREES)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_up_the_list(name):
    above = set(ORDER[: ORDER.index(name)])
    wrong = ours(IMPORTS[name]) - above
    assert not wrong, f"{name} imports {sorted(wrong)}, which stand below it"


def test_programs_are_imported_by_nobody_else():
    programs = {
        name
        for name, tree in TREES.items()
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)
    }
    assert programs == PROGRAMS.keys()
    for program, users in PROGRAMS.items():
        assert {name for name, found in IMPORTS.items() if program in found} == users, program


def test_no_module_imports_tests():
    test_modules = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests", "pytest"}
    assert "conftest" in test_modules
    for name, found in IMPORTS.items():
        assert not {f.split(".")[0] for f in found} & test_modules, name


def test_data_comes_without_jax():
    """A worker that tokenises must not start JAX, which would reserve the GPU's memory."""
    for name, found in IMPORTS.items():
        if name.startswith(("configs", "data_pipeline")):
            assert not {f.split(".")[0] for f in found} & {"jax", "flax", "optax"}, name


def printing_functions(tree: ast.Module) -> set[str]:
    """Names of the top-level functions and classes of `tree` that call print ("": none)."""
    return {
        getattr(top, "name", "")
        for top in tree.body
        for node in ast.walk(top)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }


def test_only_programs_print():
    printing = {(name, f) for name, tree in TREES.items() for f in printing_functions(tree)}
    allowed = PRINTERS | {(name, f) for name in PROGRAMS for f in ("main", "_main")}
    assert printing <= allowed, "use logging"
    assert printing >= PRINTERS, "take what no longer prints off the list"
