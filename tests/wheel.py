"""Builds the wheel, installs it into an empty environment outside the repository and runs `unetpp demo` there.

Run by `make wheel-test`; it is not a pytest module because it needs minutes and an installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDED = (
    "unetpp/bundled/nuclei/weights.safetensors",
    "unetpp/bundled/nuclei/model.json",
    "unetpp/bundled/nuclei-full/weights.safetensors",
    "unetpp/bundled/landcover/weights.safetensors",
    "unetpp_workflows/recipes/nuclei.toml",
    "unetpp_workflows/recipes/landcover.toml",
    "unetpp_kernels/definition.py",
    *(f"unetpp_workflows/viewer/static/{name}" for name in ("index.html", "app.js", "style.css", "LICENSES.txt")),
)


def run(command: list[str], **options: object) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="unetpp-wheel-") as folder:
        work = Path(folder)
        run([sys.executable, "-m", "build", "--wheel", "--outdir", str(work), str(REPOSITORY)])
        (wheel,) = work.glob("unetpp-*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        missing = [name for name in NEEDED if name not in names]
        strangers = sorted({name.split("/")[0] for name in names if ".dist-info/" not in name})
        if missing or strangers != ["unetpp", "unetpp_kernels", "unetpp_workflows"]:
            print(f"the wheel lacks {missing} or holds other packages: {strangers}")
            return 1
        venv.create(work / "env", with_pip=True)
        python = str(work / "env" / "bin" / "python")
        run([python, "-m", "pip", "install", "-q", "-c", str(REPOSITORY / "constraints.txt"), str(wheel)])
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "UNETPP_NO_SKIP")}
        environment |= {"UNETPP_HOME": str(work / "home")}
        run([str(work / "env" / "bin" / "unetpp"), "demo", "--output", str(work / "demo")], cwd=work, env=environment)
    print("wheel: built, installed and demonstrated outside the repository")
    return 0


if __name__ == "__main__":
    sys.exit(main())
