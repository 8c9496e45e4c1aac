"""Fills the generated parts of the READMEs from the bundled models and the committed measurements.

python tests/readme.py          rewrite them
python tests/readme.py --check  exit 1 when one would change
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "README.md": "models tree speed cpu cpu_amx train scaling gpu read papers folds tta precisions archive kills "
    "rivals view",
    "workflows/README.md": "handover",
}
"""What stands in each file between marks. All but models and tree are files of results and functions of `tables`."""


def models() -> str:
    lines = [
        "| model | classes | data (CC0) | validation | IoU per class | command |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("nuclei", "nuclei-full", "landcover"):
        spec = json.loads((ROOT / "unetpp/bundled" / name / "model.json").read_text(encoding="utf-8"))
        iou = ", ".join(f"{key} {value:.3f}" for key, value in spec["metrics"]["iou"].items() if value is not None)
        training = spec["training"]
        held_out = f"{training['validation_images']} images ({', '.join(training['validation'])})"
        classes = ", ".join(c["name"] for c in spec["classes"])
        lines.append(f"| `{name}` | {classes} | {training['source']} | {held_out} | {iou} | `{training['command']}` |")
    lines += ["", "Pooled over all validation pixels at full size, measured by the training code; see the model cards."]
    return "\n".join(lines)


def tree() -> str:
    """One line per module: its name and the first clause of its first sentence."""
    lines = ["```"]
    for package in ("kernels/unetpp_kernels", "unetpp", "workflows/unetpp_workflows"):
        lines.append(f"{package}/")
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT / package)
            if path.name == "__init__.py" and len(name.parts) == 1:
                continue
            depth = "  " * len(name.parts)
            label = f"{name.parent}/" if path.name == "__init__.py" else path.name
            if path.name == "__init__.py":
                depth = "  "
            lines.append(f"{depth}{label:<22} {_first_clause(path)}")
    return "\n".join([*lines, "```"])


def _first_clause(path: Path) -> str:
    found = re.match(r'"""(.+?)(?:[;:.]\s|[.]?"""|\n\n)', path.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def measured(name: str) -> str:
    path = ROOT / "tests/benchmarks" / f"{name}.json"
    if not path.is_file():
        return "Not measured."
    draw: Callable[[dict[str, Any]], str] = getattr(tables, name)
    return draw(json.loads(path.read_text(encoding="utf-8")))


def part(name: str) -> str:
    own: dict[str, Callable[[], str]] = {"models": models, "tree": tree}
    return own[name]() if name in own else measured(name)


def render(file: str, text: str) -> str:
    for name in PARTS[file].split():
        block = f"<!-- {name} -->\n{part(name)}\n<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{file} needs one pair of <!-- {name} --> and <!-- /{name} -->")
    return text


def main() -> int:
    changed = False
    for file in PARTS:
        path = ROOT / file
        before = path.read_text(encoding="utf-8")
        after = render(file, before)
        if "--check" not in sys.argv[1:]:
            path.write_text(after, encoding="utf-8")
        elif before != after:
            changed = True
            print(f"{file} is out of date: run python tests/readme.py")
    return int(changed)


if __name__ == "__main__":
    sys.exit(main())
