"""The arrows between the folders point one way, for imports and cimports."""

import ast
import re
from pathlib import Path

import shardserver

ROOT = Path(shardserver.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "amounts": set(),
    "time_slice": set(),
    "config": {"errors", "amounts"},
    "config_text": {"config"},
    "memory": {"errors"},
    "protocol": {"errors", "memory", "amounts"},
    "storage": {"errors", "memory", "protocol"},
    "io_uring": {"errors", "memory", "storage"},
    "router": {"errors", "memory", "protocol"},
    "core": {"errors", "time_slice", "memory", "protocol", "storage", "router"},
    "net": {"errors", "memory", "protocol", "storage", "router", "core"},
    "client": {"errors", "protocol"},
    "bench": {"errors", "time_slice", "memory", "protocol", "client"},
    "cli": {"errors", "config", "config_text", "supervisor", "admin", "core", "client"},
}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    if path.suffix != ".py":
        lines = re.findall(r"^from shardserver\.(\w+)[\w.]* c?import ", path.read_text(), re.MULTILINE)
        return set(lines)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name.split(".")[1] for name in names if name.startswith("shardserver.")}
    return found


def test_no_import_points_back() -> None:
    seen = set()
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.pyx"), *ROOT.rglob("*.pxd")]:
        name = layer(path)
        seen.add(name)
        if name in MAY_IMPORT:
            back = imported(path) - MAY_IMPORT[name] - {name}
            assert not back, f"{path.relative_to(ROOT)} imports {sorted(back)}"
    assert set(MAY_IMPORT) <= seen


def test_the_configuration_page_is_current() -> None:
    from shardserver.config_text import reference_page

    assert (ROOT.parent / "docs" / "configuration.md").read_text() == reference_page()
