"""The configuration as text: the effective values, and the reference page."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shardserver.config import PREFIX, SECRET_NAMES, TABLES, Config, Sources, known_keys, live_keys


def describe(config: Config, sources: Sources | None = None) -> str:
    """The effective values as TOML, each with its source unless that is unknown. There are no secrets in the tree."""
    lines = []
    for section in Config.__struct_fields__:
        lines.append(f"[{section}]")
        part = getattr(config, section)
        for name in part.__struct_fields__:
            if f"{section}.{name}" in TABLES and getattr(part, name):
                continue
            text = msgspec.json.encode(getattr(part, name)).decode()
            lines.append(f"{name} = {text}{_source(sources, f'{section}.{name}')}")
        lines.append("")
        for key in sorted(TABLES):
            if key.startswith(f"{section}."):
                lines += _describe_tables(key, getattr(part, key.partition(".")[2]), _source(sources, key))
    return "\n".join(lines)


def _source(sources: Sources | None, key: str) -> str:
    return "" if sources is None else f"  # {sources.get(key, 'default')}"


def _describe_tables(key: str, tables: Sequence[msgspec.Struct], source: str) -> list[str]:
    """After the keys of their section: in TOML a table ends the one before it."""
    lines = []
    for table in tables:
        lines.append(f"[[{key}]]{source}")
        lines += [f"{name} = {msgspec.json.encode(getattr(table, name)).decode()}" for name in table.__struct_fields__]
        lines.append("")
    return lines


def reference_page() -> str:
    """docs/configuration.md, whole."""
    lines = [
        "# Configuration",
        "",
        "Made by `python -m shardserver.config_text > docs/configuration.md`; a test keeps it current.",
        "Order: defaults, the file of `--config`, the environment (`SHARDSERVER_` + section + key), flags.",
        "Unknown keys are refused, unknown variables warned of.",
        "",
        'A reload applies the keys marked `live` (operations.md, "Reload"); the others hold until the next start.',
        "",
        "| key | default | meaning, unit, cost | environment | reload |",
        "|---|---|---|---|---|",
    ]
    live = live_keys()
    for key, (_, default, text) in known_keys().items():
        variable = "file only" if key in TABLES else f"`{PREFIX + key.replace('.', '_').upper()}`"
        shown = msgspec.json.encode(default).decode()
        lines.append(f"| `{key}` | `{shown}` | {text} | {variable} | {'live' if key in live else ''} |")
    lines += ["", f"Read at the first start only: {', '.join(f'`{name}`' for name in sorted(SECRET_NAMES))}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference_page(), end="")
