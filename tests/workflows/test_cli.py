"""The command line as a user meets it: start-up, help, exit codes, one-line messages; commands run as processes."""

from __future__ import annotations

import ast
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from tests.engines import NATIVE
from unetpp import __version__
from unetpp.errors import StoreError
from unetpp_workflows.cli import app
from unetpp_workflows.nightly import load_nightly
from unetpp_workflows.prepare.dataset import load_dataset
from unetpp_workflows.record import FORMAT, ImageRecord

Draw = Callable[..., Path]
FAST = ["--engine", "torch", "--precision", "fp32", "--set", "tiling.core=32", "--set", "tracking.enabled=false"]
HEAVY = (
    "torch", "ray", "mlflow", "zarr", "numpy", "pydantic", "openvino", "llvmlite", "rasterio", "openslide", "PIL",
)  # fmt: skip


def unetpp(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unetpp_workflows", *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def call(*args: object) -> tuple[int, str]:
    """Run a command in this process: for what does not depend on being one."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from unetpp_workflows.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("LOADED []")
    assert "segment" in done.stdout


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="a torch for GPUs is asked for one")
@pytest.mark.parametrize("engine", ["openvino", *NATIVE])
def test_segmenting_needs_no_torch_in_its_process(tmp_path: Path, tiny_package: Path, engine: str) -> None:
    """At OpenVINO's first use another process has it; later it would be half of a small run's time.

    GDAL would be a third of a second.
    """
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "a.png")
    for output in ("first", "second"):
        words = ["segment", tmp_path / "a.png", "-m", tiny_package, "-o", tmp_path / output, "--instances"]
        words += ["--engine", engine]
        code = (
            "import sys; from unetpp_workflows.cli import app\n"
            f"try: app({[str(word) for word in words]!r})\n"
            "except SystemExit as end: assert not end.code\n"
            "print('LOADED', [name for name in ('torch', 'rasterio') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.rstrip().endswith("LOADED []"), done.stdout


@pytest.mark.parametrize("engine", NATIVE)
def test_a_slide_is_made_ready_and_told_of_without_what_other_runs_need(
    tmp_path: Path, tiny_package: Path, engine: str
) -> None:
    """No SciPy, which finds tissue, no GDAL, no OpenVINO, and none of the pandas that Arrow looks for.

    They would take half a second of every run before its first tile, and a third behind its last.
    """
    tifffile.imwrite(tmp_path / "a.tif", np.full((64, 64, 3), 90, np.uint8), tile=(32, 32), photometric="rgb")
    image, out, package = (str(path) for path in (tmp_path / "a.tif", tmp_path / "out", tiny_package))
    code = (
        "import sys, unetpp_workflows.pipeline; from pathlib import Path\n"
        "from unetpp.segment import prepare_job; from unetpp_workflows.archive import write_summary\n"
        f"job = prepare_job({image!r}, Path({out!r}), Path({package!r}), tissue='none', engine={engine!r})\n"
        f"assert job.image['kind'] == 'slide'; write_summary(Path({out!r}))\n"
        "unwanted = ('torch', 'scipy', 'rasterio', 'pandas', 'openvino', 'unetpp.engine.openvino')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]" and (tmp_path / "out/summary.parquet").is_file()


COMMANDS = ["demo", "segment", "plan", "status", "verify", "train", "report", "doctor"]


def test_the_command_keeps_libraries_from_warning_of_images_without_a_place(tmp_path: Path) -> None:
    """... in every thread: what a thread ignores for a block is warned of again when another one's block ends."""
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.tif")
    code = (
        "import sys\nfrom unetpp_workflows.cli import main\nsys.argv = ['unetpp', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"import rasterio\nrasterio.open({str(tmp_path / 'a.tif')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout and not done.stderr


def test_doctor_lists_the_formats_that_a_test_proves_and_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, text = call("doctor", "--formats")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert code == 0
    assert "test_dicom.py::test_every_level_has_the_pixels_of_its_tiles" in lines["DICOM whole slide"]
    assert "should work, no test" in lines["Hamamatsu NDPI"]


def test_names_that_standard_output_cannot_show_are_spelled_out(tmp_path: Path) -> None:
    ImageRecord(name="a", status="failed", message="日本.tif: no reader").write(tmp_path)
    command = [sys.executable, "-m", "unetpp_workflows", "status", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert "\\u65e5\\u672c.tif: no reader" in done.stdout and not done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_one_line_and_a_closed_one_takes_nothing(unbuffered: str, tmp_path: Path) -> None:
    (tmp_path / "out/a").mkdir(parents=True)
    ImageRecord(name="a", status="failed", message="no reader").write(tmp_path / "out/a")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

    def run(line: str) -> tuple[int, str]:
        command = ["/bin/sh", "-c", f'"$0" -m unetpp_workflows {line}', sys.executable, str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert not done.stdout
        return done.returncode, done.stderr

    full = (1, "error: cannot write to standard output: No space left on device; ")
    for line in ('status "$1"', 'status --json "$1"', "--help", "--version"):
        code, errors = run(f"{line} >/dev/full")
        assert (code, errors[: len(full[1])]) == full and errors.count("\n") == 1
    assert run('status "$1" >&-') == (1, "")
    assert run('status "$1" >&- 2>&-') == (1, "")


@pytest.mark.parametrize("command", ["doctor --formats", "models list", "doctor"])
def test_tables_cut_nothing_off_on_a_narrow_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    code, text = call(*command.split())
    assert code == 0 and text.strip() and "…" not in text


@pytest.mark.parametrize("command", [*COMMANDS, "models register"])
def test_help_of_every_command_shows_an_example(command: str) -> None:
    code, text = call(*command.split(), "--help")
    assert code == 0
    assert f"unetpp {command}" in text.split("Options")[0].split("Usage")[1].split("\n", 1)[1]


def test_every_parameter_of_every_command_is_read() -> None:
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    commands = [command.callback for group in groups if group for command in group.registered_commands]
    assert len(commands) > 15
    for command in commands:
        assert command is not None
        function = ast.parse(inspect.getsource(inspect.unwrap(command))).body[0]
        assert isinstance(function, ast.FunctionDef)
        read = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
        declared = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        assert declared <= read, f"{function.name} ignores {', '.join(declared - read)}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["segment", "x.png"], "Missing option"),
        (["segment", "x.png", "-o", "out", "--modell", "m"], "--modell"),
        (["segment", "x.png", "-o", "out"], "no model"),
        (["segment", "x.png", "-o", "out", "-m", "nonesuch"], "no model 'nonesuch'"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--set", "engine.thread=2"], "did you mean 'engine.threads'"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--engine", "tpu"], "engine.name = 'tpu'"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--spacing", "0.25"], "write it like 0.25um"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--spacing", "1m", "--mpp", "0.2"], "give one"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--config", "absent.toml"], "absent.toml: no such"),
        (["segment", "x.png", "-o", "out", "-m", "m", "--mask", "absent.png"], "absent.png does not exist"),
        (["status", "nowhere"], "nowhere: no such folder"),
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["report", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = call(*args)
    assert code == 2, text
    assert message in text
    assert not (tmp_path / "out").exists()


def test_one_call_with_good_and_bad_images(ink_package: Path, blots: Draw, tmp_path: Path) -> None:
    good, corrupt = blots("good.png"), blots("corrupt.png")
    corrupt.write_bytes(corrupt.read_bytes()[:120])
    unknown = tmp_path / "in/letter.doc"
    unknown.write_bytes(b"\xd0\xcf\x11\xe0 some office file")
    grey16 = tmp_path / "in/grey16.png"
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(grey16)
    missing = tmp_path / "in/missing.svs"
    out = tmp_path / "out"
    done = unetpp("segment", missing, corrupt, good, unknown, grey16, "-m", ink_package, "-o", out, *FAST)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    for line, name in zip(lines, ("missing.svs", "corrupt.png", "letter.doc", "grey16.png"), strict=True):
        assert name in line
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 of 5 images segmented" in done.stdout
    assert json.loads((out / "good/record.json").read_text())["status"] == "done"


def test_metrics_go_to_the_file_and_the_port_that_were_asked_for(
    ink_package: Path, blots: Draw, tmp_path: Path
) -> None:
    file = tmp_path / "unetpp.prom"
    command = ("segment", blots("good.png"), "-m", ink_package, "-o", tmp_path / "out", *FAST, "--metrics-file", file)
    assert call(*command)[0] == 0
    found = file.read_text()
    label = f'{{output="{tmp_path}/out"}}'
    assert f"unetpp_run_exit_code{label} 0.0" in found and f"unetpp_shards_done_total{label} 12.0" in found
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, text = call(*command, "--metrics-port", taken.getsockname()[1])
    assert code == 2 and "choose another port" in text
    assert f"unetpp_run_exit_code{label} 2.0" in file.read_text()


def test_a_slide_without_pixel_size_needs_one_and_takes_it(
    data_dir: Path, ink_package_with_spacing: Path, tmp_path: Path
) -> None:
    slide, out = data_dir / "slides/TCGA-CR-7395-01A-01-TS1.svs", tmp_path / "out"
    model = ("-m", ink_package_with_spacing, "-o", out, *FAST[:4], "--set", "tracking.enabled=false")
    code, text = call("segment", slide, *model)
    assert code == 1, text
    [line] = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert slide.name in line
    assert "--mpp" in line or "--spacing" in line
    code, text = call("plan", slide, *model[:2], "--mpp", "1.0", "--set", "engine.name=torch")
    assert code == 0, text


def test_plan_status_verify_and_report_on_one_output(ink_package: Path, blots: Draw, tmp_path: Path) -> None:
    path, out = blots("slide.png"), tmp_path / "out"
    code, text = call(
        "plan", path, "-m", ink_package, "-o", out, "--set", "tiling.core=32", "--set", "engine.name=torch"
    )
    assert code == 0, text
    assert "1 image, 0.0 Mpx of which 100% are valid, 12 shards of which 0 are done" in text
    assert not out.exists()
    assert call("segment", path, "-m", ink_package, "-o", out, *FAST)[0] == 0
    assert call("status", out)[0] == 0
    assert call("verify", out)[0] == 0
    (out / "slide/report.html").unlink()
    assert call("report", out)[0] == 0
    assert (out / "slide/report.html").exists()


def test_plan_takes_the_options_of_segment_on_which_the_work_depends(
    ink_package: Path, blots: Draw, tmp_path: Path
) -> None:
    work = (blots("slide.png"), "-m", ink_package, "-o", tmp_path / "out")
    work += ("--engine", "torch", "--precision", "fp32", "--tta", "mirror", "--probabilities", "--workers", "1")
    work += ("--set", "tiling.core=32", "--set", "tracking.enabled=false")
    assert call("segment", *work)[0] == 0
    code, text = call("plan", *work)
    assert code == 0, text
    assert "12 shards of which 12 are done" in text and "engine torch fp32 with tta mirror" in text
    assert "with 1 worker" in text
    assert "of which 0 are done" in call("plan", *(word for word in work if word != "--probabilities"))[1]


@pytest.mark.parametrize("command", ["segment", "plan"])
def test_what_every_image_would_lack_is_said_once(command: str, ink_package: Path, blots: Draw, tmp_path: Path) -> None:
    """10,000 images of an archive had 10,000 records that each said the same of this machine."""
    images, out = [blots(f"{name}.png") for name in "abc"], tmp_path / "out"
    code, text = call(command, *images, "-m", ink_package, "-o", out, "--engine", "openvino", "--precision", "fp16")
    assert code == 1
    assert [line for line in text.splitlines() if "fp16" in line] == [
        "error: the openvino engine has no fp16; use --precision bf16 or fp32"
    ]
    assert not [*out.glob("*/job.json"), *out.glob("*/record.json")]


def test_plan_names_every_image_where_the_terminal_is_narrow(
    ink_package: Path, blots: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = blots("a-slide-with-a-name.png")
    for columns, tiles in (("80", False), ("120", True)):
        monkeypatch.setenv("COLUMNS", columns)
        text = call("plan", path, "-m", ink_package, "-o", tmp_path / "out", "--set", "engine.name=torch")[1]
        head = next(line for line in text.splitlines() if line.startswith("image"))
        assert ("useful" in head) == tiles and len(head) <= int(columns)
        first, *_ = text.splitlines()[text.splitlines().index(head) + 1].split()
        assert "a-slide-with-a-name".startswith(first) and len(first) >= 12


def test_verify_finds_a_changed_byte_and_repair_lets_segment_make_it_again(
    ink_package: Path, blots: Draw, tmp_path: Path
) -> None:
    path, out = blots("slide.png"), tmp_path / "out"
    assert call("segment", path, "-m", ink_package, "-o", out, *FAST)[0] == 0
    victim = out / "slide/labels.ome.zarr/classes/0/c/0/0"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, text = call("verify", out)
    assert code == 1
    assert "shard 0.0" in text
    assert call("verify", out, "--repair")[0] == 1
    assert call("status", out)[1].count("running or interrupted") >= 1
    assert call("segment", path, "-m", ink_package, "-o", out, *FAST)[0] == 0
    assert victim.read_bytes() == whole
    assert call("verify", out)[0] == 0


def test_status_names_what_failed(ink_package: Path, blots: Draw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("segment", blots("good.png"), tmp_path / "gone.png", "-m", ink_package, "-o", out, *FAST)
    code, text = call("status", out)
    assert code == 1
    assert "gone" in text
    assert "1 done, 1 failed" in " ".join(text.split()) or "1 failed, 1 done" in " ".join(text.split())


@pytest.mark.parametrize(
    ("sent", "executor"), [(signal.SIGINT, "local"), (signal.SIGTERM, "local"), (signal.SIGTERM, "ray")]
)
def test_an_interruption_exits_130_and_the_same_command_continues(
    sent: signal.Signals, executor: str, ink_package: Path, blots: Draw, tmp_path: Path
) -> None:
    path, out = blots("big.png", height=1024, width=1024), tmp_path / "out"
    options = ("--set", "tiling.core=64", "--workers", 1, "--executor", executor)
    args = ("segment", path, "-m", ink_package, "-o", out, *FAST, *options)
    command = [sys.executable, "-m", "unetpp_workflows", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commits = out / "big/commits"
    deadline = time.monotonic() + 60
    while not list(commits.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to continue" in errors and not list(out.glob(".lease*"))
    kept = {file: file.read_bytes() for file in commits.glob("*.json")}
    assert 0 < len(kept) < 16 * 16
    code, text = call(*args)
    assert code == 0 and f"({len(kept)} were done before)" in text
    assert all(file.read_bytes() == content for file, content in kept.items())


@pytest.mark.parametrize(
    ("module", "trap", "ending"),
    [
        ("unetpp.allocation", "-", (130, "")),  # before the command is known
        ("typer", "-", (130, "")),
        ("mlflow", "-", (130, "interrupted; finished parts are kept: run the same command again to continue\n")),
        ("typer", "''", (0, "")),  # as in the background of a script
    ],
)
def test_ctrl_c_while_modules_are_imported_is_no_traceback(module: str, trap: str, ending: tuple[int, str]) -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from unetpp_workflows.__main__ import main\n"
        "sys.argv = ['unetpp', 'models', 'list']\n"
        "main()"
    )
    # A shell's word for how it ended: Python may end by the signal itself, which is 130, too.
    command = ["/bin/sh", "-c", f'trap {trap} INT; "$0" -c "$1"; exit $?', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == ending


def test_models_are_registered_listed_and_aliased(ink_package: Path) -> None:
    assert call("models", "register", ink_package, "--alias", "champion") == (
        0,
        "models:/ink/1 is now models:/ink@champion\n",
    )
    code, text = call("models", "list")
    assert code == 0
    assert "models:/ink/1" in text
    assert "@champion" in text
    assert call("models", "alias", "ink", "1", "challenger")[0] == 0
    code, text = call("models", "alias", "ink", "9", "champion")
    assert code == 2
    assert "no version 9" in text


@pytest.mark.parametrize(
    ("command", "begin", "end"), [("nightly", "A configuration:", "╭"), ("prepare", "A data set is a", "The table")]
)
def test_configurations_in_help_can_be_copied(
    command: str, begin: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a terminal shows is read as the file that it describes: markup would swallow [headers]."""
    monkeypatch.setenv("COLUMNS", "120")
    _, text = call(command, "--help")
    shown = text.split(begin, 1)[1].split("\n", 1)[1].split(end)[0]
    file = tmp_path / "shown.toml"
    file.write_text("\n".join(line.strip() for line in shown.splitlines()))
    if command == "nightly":
        found = load_nightly(file)
        assert found.segment.executor.workers == 8 and found.promotion is not None
    else:
        dataset = load_dataset(file)
        assert dataset.data.shares == {"train": 0.8, "val": 0.2} and len(dataset.classes) == 2


def test_the_version_is_printed() -> None:
    assert call("--version") == (0, f"unetpp {__version__}\n")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "smoke", "-o", "out", "--data", "gone"],
        ["train", "smoke", "-o", "out", "--store", "gone"],
        ["prepare", "d.toml", "-o", "s.zarr", "--data", "gone"],
        ["evaluate", "nuclei", "--data", "gone"],
        ["promote", "nuclei", "--data", "gone"],
    ],
)
def test_a_data_folder_that_is_not_there_is_wrong_usage(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.toml").touch()
    words = [str(tmp_path / word) if word in ("out", "gone", "d.toml", "s.zarr") else word for word in command]
    code, text = call(*words)
    assert code == 2 and f"{tmp_path / 'gone'}: no such folder" in text


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 1, "name": 3', f'{{"format": {FORMAT}}}'])
def test_a_record_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/record.json").write_text(content)
    with pytest.raises(StoreError, match=r"record\.json (is damaged|was written by another version)"):
        ImageRecord.read(tmp_path / "image")


def test_doctor_says_that_the_registry_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "file").touch()
    code, text = call("doctor", "--tracking-uri", f"sqlite:///{tmp_path}/file/mlflow.db")
    assert code == 1 and f"{tmp_path}/file cannot be written; set UNETPP_HOME or --tracking-uri" in text
