"""The pages say what is so: their Python runs, their links lead somewhere, their tables are those of their scripts."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from harness import BACKEND

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    ".github/CONTRIBUTING.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r'^```python(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
# A block's title says where it runs. What needs a network or another extra is not run.
BACKENDS = {"JAX": "jax", "TensorFlow": "tensorflow", "PyTorch": "torch"}
NOT_RUN = {"With a network", "With keras-hub"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _blocks(page):
    """The Python of a page that runs on this backend."""
    for title, code in BLOCK.findall(TEXTS[page]):
        assert title in {"", *BACKENDS, *NOT_RUN}, f"{page}: no block may be titled {title!r}"
        if BACKENDS.get(title, BACKEND) == BACKEND and title not in NOT_RUN:
            yield code


def _anchors(page):
    """The anchors of a page's headings, as the site and the forge make them."""
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in TEXTS[page]])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(_blocks(page)), page, "exec"), {"__name__": page})


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in TEXTS[page]])
def test_a_page_imports_this_library_before_keras(page):
    """Keras would look for TensorFlow where another backend alone is installed."""
    code = "\n".join(code for _, code in BLOCK.findall(TEXTS[page]))
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", code, re.MULTILINE))
    assert re.findall(r"\b(?:dl_mamba|keras)\b", imports)[0] == "dl_mamba"


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_a_page_escapes_the_test(page):
    fences = re.findall(r"^[ \t]*```(.+)$", TEXTS[page], re.MULTILINE)
    unknown = {fence for fence in fences if not fence.startswith("python")} - {"bibtex", "toml", "sh"}
    if page == "docs/data_formats.md":  # test_cli_tasks reads each block of data there as its task
        unknown = {fence for fence in unknown if not re.fullmatch(r'\w+ title="\w+"', fence)}
    assert not unknown
    assert len([fence for fence in fences if fence.startswith("python")]) == len(BLOCK.findall(TEXTS[page]))


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_of_a_page_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", TEXTS[page], flags=re.DOTALL)
    lost = []
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        name = str(target.resolve().relative_to(ROOT))
        if not target.exists() or (anchor and anchor not in _anchors(name)):
            lost.append(link)
    assert not lost


def test_a_broken_link_and_a_broken_anchor_are_seen(monkeypatch):
    monkeypatch.setitem(
        TEXTS, "docs/faq.md", "[a](nowhere.md) [b](install.md#nowhere) [c](install.md#which-backend-runs)"
    )
    with pytest.raises(AssertionError, match=r"\['nowhere.md', 'install.md#nowhere'\]"):
        test_relative_links_and_anchors_of_a_page_lead_somewhere("docs/faq.md")


def _exports(package):
    """The names in `__all__` of a package."""
    tree = ast.parse((ROOT / package.replace("dl_mamba.heads", "heads").replace(".", "/") / "__init__.py").read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return set(names)


@pytest.mark.parametrize(
    "package", ["", ".ops", ".heads", ".generation", ".training", ".tokenizers", ".weights", ".viz"]
)
def test_the_reference_has_every_public_name_of_a_package(package):
    """A package is listed as a whole; a name that a module of it has as well hides behind the module, and is listed."""
    package = f"dl_mamba{package}"
    listed = set(re.findall(r"^::: (\S+)$", "\n".join(TEXTS.values()), re.MULTILINE))
    folder = ROOT / package.replace("dl_mamba.heads", "heads").replace(".", "/")
    modules = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert package in listed
    hidden = _exports(package) & modules
    assert all({f"{package}.{name}", f"{package}.{name}.{name}"} & listed for name in hidden)


def test_the_errors_of_the_questions_page_are_those_of_the_code():
    folders = (ROOT / "dl_mamba", ROOT / "heads", ROOT / "variants")
    code = "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py"))
    code = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s+f?"', "", code))
    table = TEXTS["docs/faq.md"].split("\n\n")[3]
    messages = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(messages) > 10
    assert [m for m in messages if not all(part.strip(" ,;:.'") in code for part in m.split("..."))] == []


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_the_table_of_variants_is_the_one_that_its_script_writes():
    spec = importlib.util.spec_from_file_location("variants_table", ROOT / "docs" / "variants_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.with_table(TEXTS["README.md"]) == TEXTS["README.md"]
