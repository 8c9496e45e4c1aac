"""Kills a segmentation's workers 20 times and its driver 5 times at random, and compares with an undisturbed run.

    make kills                                  (1.02 gigapixels; twenty minutes on two quiet cores)
    python tests/benchmarks/kills.py FOLDER [--height 31232 --width 32768] [--shard 1024] [--minutes M]

FOLDER keeps the slide, both outputs and, in kills.json, the plan of the kills and those done: started again, it goes
on. After --minutes it stops by Ctrl-C, which counts as no kill, and exits with 3. At the end every file of labels,
pyramid, polygons and picture must have the same SHA-256 in both, and `unetpp verify --audit` must find no shard lost
or written twice; exit code 1 otherwise. Records, journals and pages hold times and are not compared. Of a whole
gigapixel the outcome goes into kills.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from archive import MODEL, SIZES, SOURCE, make_slide
from speed import provenance

RESULT = Path(__file__).with_name("kills.json")
WORKERS, DRIVERS = 20, 5
LEAST_SHARDS = 64
UNFINISHED = 3
PLAN = "kills.json"
COMPARED = ("labels.ome.zarr/**/*", "polygons.geojson*", "picture.jpg")
Kill = dict[str, Any]


class Trial:
    """One folder with a slide, an undisturbed output and a disturbed one."""

    def __init__(self, folder: Path, height: int, width: int, shard: int, deadline: float) -> None:
        self.folder, self.shard, self.deadline = folder, shard, deadline
        folder.mkdir(parents=True, exist_ok=True)
        self.slide = folder / f"{height}x{width}.tif"
        if not self.slide.exists():
            source = Path(os.environ.get("UNETPP_DATA", "")) / "slides" / SOURCE
            if not source.is_file():
                sys.exit("set UNETPP_DATA to the folder of sample images")
            partial = self.slide.with_suffix(".partial.tif")
            make_slide(source, partial, height, width)
            partial.rename(self.slide)
        self.shards = -(-height // shard) * -(-width // shard)

    def result(self, name: str) -> Path:
        return self.folder / name / self.slide.stem

    def commits(self) -> int:
        return len(list((self.result("disturbed") / "commits").glob("*.json")))

    def start(self, name: str, executor: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "unetpp_workflows", "segment", str(self.slide), "-m", MODEL]
        command += ["-o", str(self.folder / name), "--tissue", "none", "--executor", executor, "--workers", "2"]
        settings = {"tracking.enabled": "false", "tiling.shard": self.shard, "tiling.core": min(1024, self.shard)}
        settings["executor.attempts"] = (
            WORKERS + 1
        )  # a worker that dies costs its shards a try, and chance may hit one often
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def undisturbed(self) -> None:
        self.wait(self.start("expected", "local"), self.shards + 1)

    def wait(self, driver: subprocess.Popen[bytes], commits: int) -> bool:
        """Return whether the driver still runs with so many shards committed; it ended well otherwise."""
        while driver.poll() is None:
            if time.monotonic() > self.deadline:
                driver.send_signal(signal.SIGINT)
                driver.wait()
                print("out of time; run the same command again to go on")
                sys.exit(UNFINISHED)
            if self.commits() >= commits:
                return True
            time.sleep(0.05)
        if driver.returncode:
            sys.exit(f"segment ended with exit code {driver.returncode}; see the logs in {self.folder}")
        return False


def make_plan(shards: int, seed: int) -> list[Kill]:
    """Return the kills in their order: who, after how many commits, and after how many seconds from there.

    One kill of the driver comes after the last commit, while polygons and pyramid are made.
    """
    if shards < LEAST_SHARDS:
        sys.exit(f"{shards} shards are too few for {WORKERS + DRIVERS} kills; take {LEAST_SHARDS} or more")
    chance = random.Random(seed)  # noqa: S311  # no secret
    who = ["worker"] * WORKERS + ["driver"] * (DRIVERS - 1)
    chance.shuffle(who)
    commits = sorted(chance.sample(range(1, shards * 4 // 5), len(who)))
    kills = [{"who": name, "commits": count} for name, count in zip(who, commits, strict=True)]
    kills.append({"who": "driver", "commits": shards})
    return [kill | {"pause": round(chance.uniform(0, 2), 3), "done": False} for kill in kills]


def disturb(trial: Trial) -> None:
    """Run until the image is finished, killing as planned; what is done is remembered after every kill."""
    path = trial.folder / PLAN
    if not path.exists():
        seed = random.randrange(10**6)  # noqa: S311  # no secret
        path.write_text(json.dumps({"seed": seed, "kills": make_plan(trial.shards, seed)}, indent=1))
    plan = json.loads(path.read_text())
    driver = trial.start("disturbed", "ray")
    # A commit lies between two kills: segment gives up, rightly, when three workers in a row die while they start.
    least = trial.commits() + 1
    try:
        for kill in plan["kills"]:
            if kill["done"]:
                continue
            if not trial.wait(driver, min(max(kill["commits"], least), trial.shards)):
                sys.exit(f"the run ended before the kill after {kill['commits']} commits; delete {trial.folder}")
            time.sleep(kill["pause"])
            if kill["who"] == "worker":
                kill_worker(trial, driver)
            else:
                kill_driver(driver)
            kill |= {"done": True, "at": trial.commits()}
            least = kill["at"] + 1
            path.write_text(json.dumps(plan, indent=1))
            print(f"killed {kill['who']} at {kill['at']} of {trial.shards} commits", flush=True)
            if kill["who"] == "driver":
                driver = trial.start("disturbed", "ray")
        trial.wait(driver, trial.shards + 1)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait()


def kill_worker(trial: Trial, driver: subprocess.Popen[bytes]) -> None:
    while True:
        workers = [process for process in family(driver) if "ShardActor" in name_of(process)]
        if workers:
            random.choice(workers).kill()  # noqa: S311  # no secret
            return
        if not trial.wait(driver, 0):  # between two workers' lives, or before the first
            sys.exit("the run ended before a worker could be killed")
        time.sleep(0.05)


def kill_driver(driver: subprocess.Popen[bytes]) -> None:
    """Kill the driver alone, and require that what it started ends by itself."""
    below = family(driver)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(below, timeout=90)
    for process in alive:
        print(f"outlived its driver by 90 s and was killed: {name_of(process)}")
        process.kill()


def report(trial: Trial) -> int:
    """Compare both results, print and keep what was found; return the exit code."""
    expected, found = hashes(trial.result("expected")), hashes(trial.result("disturbed"))
    unlike = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    audit = [sys.executable, "-m", "unetpp_workflows", "verify", str(trial.folder / "disturbed"), "--audit"]
    code = subprocess.run(audit, check=False).returncode
    verdict = f"{len(unlike)} unlike: {', '.join(unlike[:5])}" if unlike else "byte-identical"
    print(f"{WORKERS} workers and {DRIVERS} drivers killed; {len(expected)} files of {trial.shards} shards {verdict}")
    if trial.slide.stem == "x".join(map(str, SIZES["1.02 GP"])):
        kills = json.loads((trial.folder / PLAN).read_text())["kills"]
        engine = json.loads((trial.result("expected") / "record.json").read_text())["engine"]
        facts = {
            **provenance(packages=("torch", "openvino", "ray")),
            "command": "make kills",
            "engine": f"{engine['name']} {engine['precision']}",
            "shards": trial.shards,
            "files": len(expected),
            "unlike": unlike,
            "audit": code,
            "kills": [[kill["who"], kill["at"]] for kill in kills],
        }
        RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(bool(unlike) or not expected or code != 0)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file compared, by its path below the folder."""
    files = (path for pattern in COMPARED for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def family(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(driver.pid).children(recursive=True)
    except psutil.Error:
        return []


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, default=SIZES["1.02 GP"][0])
    parser.add_argument("--width", type=int, default=SIZES["1.02 GP"][1])
    parser.add_argument("--shard", type=int, default=1024, help="side of a shard, px")
    parser.add_argument("--minutes", type=float, default=1e6, help="of this call")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.minutes * 60
    trial = Trial(arguments.folder, arguments.height, arguments.width, arguments.shard, deadline)
    trial.undisturbed()
    disturb(trial)
    sys.exit(report(trial))


if __name__ == "__main__":
    main()
