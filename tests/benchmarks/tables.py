"""Draws the committed measurements as tables of the README; measures nothing."""

from __future__ import annotations

from typing import Any


def speed(facts: dict[str, Any]) -> str:
    whole = facts["segment"]
    base = next(r for r in facts["engines"] if (r["engine"], r["precision"]) == ("torch", "fp32"))
    lines = [
        "| engine | precision | tile px | written share | computed Mpx/s | vs torch | written Mpx/s | peak MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(_engine_row(r, base) for r in facts["engines"]),
        "",
        f"`unetpp segment` (shard phase, {whole['engine']}, {whole['workers']} workers, {whole['side']}² px drawn "
        f"slide, tile {whole['tile']}) writes **{whole['written_mpx_s']:.2f} Mpx/s**, "
        f"{whole['share_of_best_tile']:.0%} of what the engine writes at its best tile within "
        f'{facts["memory_limit_mb"]} MB ({whole["best_tile"]} px). "vs torch" is the ratio to torch fp32.',
        "",
        f"Medians of {len(whole['written_mpx_s_all'])} interleaved rounds; {facts['cpu']} "
        f"({', '.join(facts['features']) or 'no bf16'}), {facts['cores']} cores; torch {facts['versions']['torch']}, "
        f"OpenVINO {facts['versions']['openvino']}, llvmlite {facts['versions'].get('llvmlite', 'none')}; commit "
        f"{facts['commit']}, {facts['date']}; "
        f"`{facts['command']}`; all rounds in [speed.json](tests/benchmarks/speed.json). GPU: {facts['gpu']}.",
    ]
    return "\n".join(lines)


def _engine_row(row: dict[str, Any], base: dict[str, Any]) -> str:
    ratio = row["computed_mpx_s"] / base["computed_mpx_s"]
    return (
        f"| {row['engine']} | {row['precision']} | {row['tile']} | {row['useful_share']:.0%} | "
        f"{row['computed_mpx_s']:.2f} | {ratio:.1f}x | {row['written_mpx_s']:.2f} | {row['peak_mb']} |"
    )


def cpu(facts: dict[str, Any]) -> str:
    rows = [*facts["ours"], *facts["peers"]]
    bases = [_fastest_eager(facts["peers"], name) for name in ("smp UnetPlusPlus resnet34", "monai BasicUNetPlusPlus")]
    settings, versions, verdict = facts["settings"], facts["versions"], facts["verdict"]
    features = ", ".join(facts["features"]) or "no bf16, no int8"
    lines = [
        "| network | M parameters | engine | precision | Mpx/s | vs smp | vs monai | relative error |",
        "|---|--:|---|---|--:|--:|--:|--:|",
        *(_cpu_row(row, bases) for row in rows),
        "",
        f'"vs smp" and "vs monai" are ratios to those libraries as they come: {_cpu_name(bases[0])}, '
        f"{_cpu_name(bases[1])}. Their rows with openvino run in the same engine as ours with openvino. Every row "
        f"takes a raw uint8 tile of {settings['tile']}² px to labels on {settings['threads']} threads. The relative "
        "error is that of the logits against the same network in torch fp32 (Frobenius). `pw_dw` had the nuclei "
        "weights bundled at that commit, `standard` the same function multiplied out, `dw_pw` random weights: its "
        "error says little.",
        "",
        _cpu_accuracy(facts["accuracy"]),
        f"Fastest for `pw_dw`: {verdict['fastest']}; within {verdict['most_error']:.1%} relative error: "
        f"{verdict['fastest_within_error']}.",
        "",
        f"Medians of {settings['rounds']} interleaved rounds; {facts['cpu']} ({features}), {facts['cores']} cores, "
        f"load {facts['load_before']} before and {facts['load_after']} after; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}; commit {facts['commit']}, "
        f"{facts['date']}; `{facts['command']}`; all rounds in [cpu.json](tests/benchmarks/cpu.json).",
    ]
    return "\n".join(lines)


def cpu_amx(facts: dict[str, Any]) -> str:
    """Draw what an earlier run of `cpu.py` measured on a CPU with AMX: the default order and the peers."""
    rows = [row for row in [*facts["ours"], *facts["peers"]] if row["network"] not in ("dw_pw", "standard")]
    bases = [_fastest_eager(facts["peers"], name) for name in ("smp UnetPlusPlus resnet34", "monai BasicUNetPlusPlus")]
    return "\n".join(
        [
            "| network | M parameters | engine | precision | Mpx/s | vs smp | vs monai | relative error |",
            "|---|--:|---|---|--:|--:|--:|--:|",
            *(_cpu_row(row, bases) for row in rows),
            "",
            f"{facts['cpu']} ({', '.join(facts['features'])}), {facts['cores']} cores; commit {facts['commit']}, "
            f"{facts['date']}; all rows and rounds in [cpu_amx.json](tests/benchmarks/cpu_amx.json).",
        ]
    )


def _fastest_eager(rows: list[dict[str, Any]], network: str) -> dict[str, Any]:
    measured = [r for r in rows if (r["network"], r["engine"]) == (network, "eager") and "mpx_s" in r]
    return max(measured, key=lambda r: float(r["mpx_s"]))


def _cpu_name(row: dict[str, Any]) -> str:
    return f"{row['network']}, {row['engine']} {row['precision']} {row['layout']}"


def _cpu_row(row: dict[str, Any], bases: list[dict[str, Any]]) -> str:
    ours = "layout" not in row
    network = f"ours, `{row['network']}`" if ours else row["network"]
    engine = row["engine"] if ours or row["engine"] != "eager" else f"eager, {row['layout']}"
    size = f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else ""
    if "mpx_s" not in row:
        return f"| {network} | {size} | {engine} | {row['precision']} | failed | | | |"
    ratios = " | ".join(f"{row['mpx_s'] / base['mpx_s']:.1f}x" for base in bases)
    error = f"{row['relative_error']:.1e}" if ours else ""
    return f"| {network} | {size} | {engine} | {row['precision']} | {row['mpx_s']:.2f} | {ratios} | {error} |"


def _cpu_accuracy(accuracy: dict[str, Any]) -> str:
    iou = ", ".join(f"{name} {value:.4f}" for name, value in accuracy["iou"].items())
    return f"Pooled IoU of nuclei on {accuracy['images']} validation images: {iou}."


def gpu(facts: dict[str, Any]) -> str:
    names = ("ours", "eager", "compile", "max-autotune")
    lines = [
        "| network | type | Mpx/s: ours | torch eager | torch.compile | max-autotune | peak MB: ours | eager |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["network"]:
        speeds = " | ".join(f"{row['mpx_s'][name]:.0f}" if name in row["mpx_s"] else "" for name in names)
        peak = f"{row['peak_mb']['ours']} | {row['peak_mb']['eager']}"
        lines.append(f"| `{row['conv']}` | {row['dtype']} | {speeds} | {peak} |")
    others = [row for row in facts.get("peers", []) if "mpx_s" in row]
    lines += [f"| {row['network']} | fp16 | | {row['mpx_s']:.0f} | | | | |" for row in others]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [
        "",
        f"From uint8 pixels to uint8 classes, {facts['network'][0]['shape'][0]} images of 512² a call, medians; "
        f"{facts['gpu']}, which copies {facts['copy']['gb_s']:.0f} GB/s; {versions}; commit {facts['commit']}, "
        f"{facts['date']}; `{facts['command']}`; every node in [gpu.json](tests/benchmarks/gpu.json).",
    ]
    return "\n".join(lines)


def train(facts: dict[str, Any]) -> str:
    settings, rows = facts["settings"], [row for row in facts["rows"] if "seconds" in row]
    lines = [
        "| network | M parameters | precision | s per step | vs smp resnet34 | vs monai | peak MB |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        bases = [
            next((r for r in rows if r["network"].startswith(name) and r["precision"] == row["precision"]), row)
            for name in ("smp UnetPlusPlus resnet34", "monai")
        ]
        ratios = " | ".join(f"{base['seconds'] / row['seconds']:.1f}x" for base in bases)
        network = row["network"] if " " in row["network"] else f"ours, `{row['network']}`"
        lines.append(
            f"| {network} | {row['parameters'] / 1e6:.2f} | {row['precision']} | {row['seconds']:.2f} | {ratios} | "
            f"{row['peak_mb']} |"
        )
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [
        "",
        f"Forward, loss, backward and AdamW on {settings['batch']} patches of {settings['side']}² px, "
        f"{settings['threads']} threads; ours with four heads (deep supervision), the others with one. Medians of "
        f"{settings['rounds']} rounds, a process each; {facts['device']}, {facts['cores']} cores, load "
        f"{facts['load_before']} before; {versions}; commit {facts['commit']}, {facts['date']}; `{facts['command']}`; "
        "all rounds in [train.json](tests/benchmarks/train.json).",
    ]
    return "\n".join(lines)


def scaling(facts: dict[str, Any]) -> str:
    settings = facts["settings"]
    return (
        f"One worker of `unetpp train` needs {facts['seconds']['1']:.1f} s for an epoch of {settings['steps']} steps "
        f"(global batch {settings['batch']} of {settings['patch']}² px, with its validation), two need "
        f"{facts['seconds']['2']:.1f} s: {facts['speed_up']:.2f} times as fast, with the same gradients. One thread "
        f"per worker, medians of {settings['rounds']} rounds; {facts['cpu']}, {facts['cores']} cores, load "
        f"{facts['load_before']} before; torch {facts['versions']['torch']}, ray {facts['versions']['ray']}; commit "
        f"{facts['commit']}, {facts['date']}; [scaling.json](tests/benchmarks/scaling.json)."
    )


def _time(seconds: float | None, unit: float = 1.0) -> str:
    """Return a time, "-" where the machine did other work meanwhile."""
    return "-" if seconds is None else f"{seconds / unit:.0f}"


def papers(facts: dict[str, Any]) -> str:
    lines = [
        "| set | network | M parameters | G multiply-adds per window | seeds x steps | IoU % | 95% interval over "
        "images | mean of windows' IoU % | of both classes % | training min | inference s | target |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["table"]:
        spread = f" ± {row['sd']:.2f}" if row["sd"] is not None else ""
        lines.append(
            f"| {row['set']} | `{row['network']}` | {row['parameters'] / 1e6:.2f} | {row['macs'] / 1e9:.2f} | "
            f"{row['seeds']} x {row['steps']} | {row['iou']:.2f}{spread} | {row['low']:.2f} to {row['high']:.2f} | "
            f"{row['window_iou']:.2f} | {row['both_iou']:.2f} | {_time(row['train_seconds'], 60)} | "
            f"{_time(row['seconds'])} | {row['target']} |"
        )
    lines += [
        "",
        "Test images, windows of 96 px at steps of 32; IoU of the class pooled over windows, mean ± standard deviation "
        "over seeds; of both classes: the mean of the class's and the background's. The target is the paper's, which "
        f"does not say which of them it prints; times where the machine did nothing else. {facts['device']}; "
        f"torch {facts['torch']}; commit {facts['commit']}, "
        f"{facts['date']}; `{facts['command']}`; every run in [papers.json](tests/benchmarks/papers.json).",
    ]
    return "\n".join(lines)


def folds(facts: dict[str, Any]) -> str:
    names = list(facts["pooled"]["dice"])
    rows = [*((row["scene"], row) for row in facts["scenes"]), ("**all pixels**", facts["pooled"])]
    lines = [
        f"| scene left out | {' | '.join(names)} | mean Dice | best step |",
        f"|---|{'--:|' * (len(names) + 2)}",
    ]
    for name, row in rows:
        values = " | ".join(f"{row['dice'][key]:.3f}" for key in names)
        lines.append(f"| {name} | {values} | {row['mean_dice']:.3f} | {row.get('best_step', '')} |")
    minutes = sum(row["seconds"] for row in facts["scenes"]) / 60
    lines += [
        "",
        f"Dice of each class on a scene that the model never saw, at full size; the last row counts the pixels of all "
        f"scenes together (target {facts['target']:.2f}). The best step was chosen on that scene, which flatters "
        f"a little. {minutes:.0f} minutes of training in all; {facts['cpu']}, {facts['cores']} cores; torch "
        f"{facts['versions']['torch']}; commit {facts['commit']}, {facts['date']}; `{facts['command']}`; "
        "confusion matrices in [folds.json](tests/benchmarks/folds.json).",
    ]
    return "\n".join(lines)


def tta(facts: dict[str, Any]) -> str:
    lines = [
        "| model | images | `--tta` | IoU of nuclei, or mean over classes | written Mpx/s | times the time |",
        "|---|--:|---|--:|--:|--:|",
    ]
    plain = {row["model"]: row["mpx_s"] for row in facts["rows"] if row["tta"] == "none"}
    lines += [
        f"| `{row['model']}` | {row['images']} | {row['tta']} | {row['score']:.4f} | {row['mpx_s']:.2f} | "
        f"{plain[row['model']] / row['mpx_s']:.1f} |"
        for row in facts["rows"]
    ]
    first = facts["rows"][0]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [
        "",
        f"Validation images, whole, in {first['engine']} {first['precision']}, pooled over all pixels; written pixels "
        f"of tiles of {facts['tile']} px by {facts['workers']} workers; {facts['cpu']}, {facts['cores']} cores; "
        f"{versions}; commit {facts['commit']}, {facts['date']}; `{facts['command']}`; every class in "
        "[tta.json](tests/benchmarks/tta.json).",
    ]
    return "\n".join(lines)


def precisions(facts: dict[str, Any]) -> str:
    lines = [
        "| model | images | precision | processor | IoU of nuclei, or mean over classes | labels unlike fp32's | "
        "written Mpx/s |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    kinds = [facts[name] for name in KINDS if name in facts]
    for run in kinds:
        for row in run["rows"]:
            score = "" if row["score"] is None else f"{row['score']:.4f}"
            unlike = "" if row["precision"] == "fp32" else f"{row['unlike']:.2%}" if row["unlike"] >= 5e-5 else "<0.01%"
            lines.append(
                f"| `{row['model']}` | {row['images']} | {row['precision']} | {_processor(run)} | {score} | {unlike} | "
                f"{row['mpx_s']:.2f} |"
            )
    lines += [
        "",
        f"Validation images, and a slide of {kinds[0]['side']}² px stained otherwise than any training image, whole, "
        f"in the native engine, over all pixels; written pixels of tiles of {kinds[0]['tile']} px by "
        f"{kinds[0]['workers']} workers.",
    ]
    for run in kinds:
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        lines.append(
            f"{_processor(run)}: {run['cores']} cores; {versions}; commit {run['commit']}, {run['date']}; "
            f"`{run['command']}`."
        )
    lines.append("All in [precisions.json](tests/benchmarks/precisions.json).")
    return "\n".join(lines)


def archive(facts: dict[str, Any]) -> str:
    lines = [
        "| slide | engine | processor | written Mpx/s, end to end | shards alone | engine alone | share of it | "
        "of processor time | peak PSS MB | limits |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    kinds = [facts[name] for name in KINDS if name in facts]
    for kind in kinds:
        for name, row in kind["rows"].items():
            speeds = f"{row['written_mpx_s']:.2f} | {row['shards_written_mpx_s']:.2f}"
            lines.append(
                f"| {name.split(',')[0]} | {row['engine']} | {_processor(kind)} | {speeds} | "
                f"{row['engine_alone']['written_mpx_s']:.2f} | "
                f"{row['share']:.0%} | {row['processor_share']:.0%} | {row['peak_pss_mb']} | {row['limited_by']} |"
            )
    first = kinds[0]
    lines += [
        "",
        f"`{first['model']}` without a tissue mask, {first['workers']} workers, polygons and pyramid included; the "
        "engine alone on interior tiles, before, after and in pauses between.",
    ]
    for kind in kinds:
        loads = ", ".join(f"{row['load']}" for row in kind["rows"].values())
        versions = ", ".join(f"{name} {number}" for name, number in kind["versions"].items())
        lines.append(
            f"{_processor(kind)}: {kind['cores']} cores; mean load {loads}; {versions}; commit "
            f"{kind['commit']}, {kind['date']}; `{kind['command']}`."
        )
    for name, row in facts.get("memory", {}).get("rows", {}).items():
        of = facts["memory"]
        lines.append(
            f"Peak PSS of the same on {name} with {row['objects']:,} objects: {row['peak_pss_mb']} MB (the machine did "
            f"other work; {of['cpu']}, {of['cores']} cores; commit {of['commit']}, {of['date']}; `{of['command']}`)."
        )
    return "\n".join(lines)


KINDS = "amx", "bf16", "fp32"
"""What processors multiply with, and how figures of different ones are kept beside each other."""


def _processor(facts: dict[str, Any]) -> str:
    """Names of virtual machines' processors do not tell their generation; their instructions do."""
    return f"{facts['cpu']} with {facts['features'][-1]}" if facts["features"] else str(facts["cpu"])


def kills(facts: dict[str, Any]) -> str:
    count = {who: sum(name == who for name, _ in facts["kills"]) for who in ("worker", "driver")}
    unlike = f"{len(facts['unlike'])} of them unlike" if facts["unlike"] else "every byte equal"
    audit = "no shard lost or written twice" if facts["audit"] == 0 else "an audit that failed"
    return (
        f"A segmentation of 1.02 gigapixels in {facts['shards']} shards, on two Ray actors, whose workers were killed "
        f"{count['worker']} times and whose driver {count['driver']} times (`kill -9` at random moments), beside an "
        f"undisturbed one on threads: {facts['files']} files, {unlike}, {audit} (`make kills`; {facts['cpu']}, "
        f"{facts['cores']} cores; engine {facts['engine']}; ray {facts['versions']['ray']}; commit "
        f"{facts['commit']}, {facts['date']}; [kills.json](tests/benchmarks/kills.json))."
    )


def handover(facts: dict[str, Any]) -> str:
    lines = [
        "| network | pixels reach it by | Mpx/s | peak PSS MB, all processes | with a shard that kills its worker |",
        "|---|---|--:|--:|---|",
        *(_handover_row(facts, row) for row in facts["rows"]),
        "",
        f"{facts['height']} x {facts['width']} px in shards of {facts['shard']}, {facts['workers']} actors, without "
        f"Ray's start; labels equal to the byte; {_rounds(facts['rounds'])}; {facts['cpu']}, {facts['cores']} "
        f"cores; ray {facts['versions']['ray']}, openvino {facts['versions']['openvino']}; commit {facts['commit']}, "
        f"{facts['date']}; `{facts['command']}`; [handover.json](../tests/benchmarks/handover.json). "
        f"GPU: {facts['gpu']}.",
    ]
    return "\n".join(lines)


def _rounds(number: int) -> str:
    return "one round" if number == 1 else f"medians of {number} rounds"


def _handover_row(facts: dict[str, Any], row: dict[str, Any]) -> str:
    way = {"actors": "actors", "raydata": "Ray Data"}[row["way"]]
    poisoned = facts["poisoned"][row["way"]] if row["network"] == "small" else None
    end = "" if poisoned is None else _poisoned(poisoned)
    return f"| {row['network']} | {way} | {row['mpx_s']:.2f} | {row['peak_pss_mb']} | {end} |"


def _poisoned(run: dict[str, Any]) -> str:
    if run["ended"] != "done":
        return f"{run['ended']}: {run['done']} shards done, none named"
    return f"ended in {run['run_seconds']:.0f} s: {run['done']} shards done, {len(run['failed'])} named"


def rivals(facts: dict[str, Any]) -> str:
    found = facts.get("speed", {})
    speed = [line for name in KINDS if name in found for line in (*_rivals_speed(found[name]), "")]
    memory = _rivals_memory(facts["memory"]) if "memory" in facts else ["Memory on a gigapixel: not measured."]
    return "\n".join([*(speed or ["Speed and seams: not measured.", ""]), *memory])


def _rivals_speed(facts: dict[str, Any]) -> list[str]:
    lines = [
        "| contestant | weights | slide px | settings | Mpx/s end to end | after start-up | peak PSS MB | "
        "labels unlike the whole image's | inside | unlike fp32's |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in facts["rows"].items():
        used, seams = row.get("settings"), facts["seams"].get(name, {})
        settings = "as it comes"
        if used:
            settings = f"{used['precision']}, {used['layout']}, tile {used['tile']}, batch {used['batch']}"
        speeds = row.get("failed", f"{row.get('mpx_s', 0):.2f}")
        ready = f"{row['ready_mpx_s']:.2f}" if "ready_mpx_s" in row else ""
        weights = "ours" if row["network"] == "same" else "own, random"
        errors = " | | "
        if "seam" in seams:
            errors = f"{seams['seam']['all']:.2%} | {seams['seam']['inside']:.2%} | {seams['fp32']['all']:.2%}"
        lines.append(
            f"| {name} | {weights} | {row['side']}² | {settings} | {speeds} | {ready} | {row.get('peak_pss_mb', '')} | "
            f"{errors} |"
        )
    ours = {name: row for name, row in facts["rows"].items() if name.startswith("unetpp")}
    others = [row for name, row in facts["rows"].items() if name not in ours and "mpx_s" in row]
    fastest = [
        (which, max(row["mpx_s"] for row in rows))
        for which, rows in (("with our weights", [r for r in others if r["network"] == "same"]), ("of all", others))
        if rows
    ]
    ratios = ", ".join(f"`{name}` is {_times(row['mpx_s'], fastest)}" for name, row in ours.items())
    versions = facts["versions"] | {
        key: value for row in others for run in row["runs"] for key, value in run.get("versions", {}).items()
        if key != "torch"
    }  # fmt: skip
    loads = [run["load"] for row in facts["rows"].values() for run in row["runs"]]
    return [
        *lines,
        "",
        f"Of rivals, {ratios} (target 4). The first also writes polygons, all of ours a pyramid and areas, the others "
        "labels alone. Seams: a slide of "
        f"{facts['crop']}² px against one call over the whole of it, same library, weights and precision; inside is "
        f"{facts['edge']} px from the image's edge; fp32 is one call of ours over the "
        f"whole. {facts['threads']} threads, no tissue mask; {_processor(facts)}, mean "
        f"load {min(loads)} to {max(loads)}; {', '.join(f'{name} {number}' for name, number in versions.items())}; "
        f"commit {facts['commit']}, {facts['date']}; `{facts['command']}`; sweeps and all runs in "
        "[rivals.json](tests/benchmarks/rivals.json).",
    ]


def _times(speed: float, fastest: list[tuple[str, float]]) -> str:
    return " and ".join(f"{speed / other:.1f} times the fastest {which}" for which, other in fastest)


def _rivals_memory(facts: dict[str, Any]) -> list[str]:
    lines = ["| contestant | network | peak PSS MB | of them at start | seconds | ended |", "|---|---|--:|--:|--:|---|"]
    for name, row in facts["rows"].items():
        network = {"same": "our weights", "tiny": "one convolution"}.get(row["network"], "own")
        lines.append(
            f"| {name} | {network} | {row['peak_pss_mb']} | {row.get('ready_pss_mb', '')} | {row['seconds']:.0f} | "
            f"{row['ended']} |"
        )
    lines += [
        "",
        f"One slide of {facts['height']} x {facts['width']} px. MONAI and TIAToolbox run one convolution, so that what "
        "shows is their canvas; the peak of a run that was stopped is a lower bound. The loop holds one tile at a time "
        "and is stopped when that has shown. "
        f"torch alone is {facts['torch_mb']['peers']} MB of each, {facts['torch_mb']['tiatoolbox']} of TIAToolbox, "
        "which requires torch < 2.13, found as a build for CUDA only. "
        f"{facts['memory_mb']} MB of memory; commit {facts['commit']}, {facts['date']}; `{facts['command']}`.",
    ]
    older = {row["commit"] for row in facts["rows"].values()} - {facts["commit"]}
    for commit in sorted(older):
        names = ", ".join(name for name, row in facts["rows"].items() if row["commit"] == commit)
        lines[-1] += f" Of commit {commit}: {names}."
    done = [name for name, row in facts["rows"].items() if row["ended"] == "done"]
    ours = {name: facts["rows"][name]["peak_pss_mb"] for name in done if name.startswith("unetpp")}
    rest = [row["peak_pss_mb"] for name, row in facts["rows"].items() if not name.startswith("unetpp")]
    if rest and ours:
        shares = ", ".join(f"`{name}` needs {peak / min(rest):.2f}" for name, peak in ours.items())
        lines[-1] += f" Of the smallest rival's memory {shares} (target 0.5)."
    return lines


def view(facts: dict[str, Any]) -> str:
    rows = [
        f"| {layer} | {row['tiles']} | {row['p50_ms']} | {row['p95_ms']} |" for layer, row in facts["tiles"].items()
    ]
    views = sorted(facts["first_view_s"])
    lines = [
        "| layer | tiles | median ms | p95 ms |",
        "|---|--:|--:|--:|",
        *rows,
        "",
        f"A drawn result of {facts['side']:,}² px. First view in Chromium, from address to picture with labels: "
        f"median {views[len(views) // 2]:.2f} s, slowest of {len(views)} {views[-1]:.2f} s. Tiles were never asked for "
        f"before, {facts['workers']} at a time, by the machine that serves them: {facts['cores']} cores, load "
        f"{facts['load'][0]} before and {facts['load'][1]} after; commit {facts['commit']}, {facts['date']}; "
        f"`make view-bench`; [view.json](tests/benchmarks/view.json).",
    ]
    return "\n".join(lines)


def read(facts: dict[str, Any]) -> str:
    lines = ["| slide | OpenSlide Mpx/s | ours Mpx/s | ratio | ratio of processor time |", "|---|--:|--:|--:|--:|"]
    for row in facts["rows"]:
        speeds = f"{row['mpx_s']['openslide']:.0f} | {row['mpx_s']['ours']:.0f}"
        lines.append(f"| {row['slide']} | {speeds} | {row['ratio']:.1f}x | {row['processor_ratio']:.1f}x |")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += [
        "",
        f"One caller reads windows of 1024² px and a halo of 64, with equal pixels; medians of {facts['rounds']} "
        f"interleaved rounds; {facts['cpu']}, {facts['cores']} cores, load {facts['load_before']} before; {versions}; "
        f"commit {facts['commit']}, {facts['date']}; `{facts['command']}`.",
    ]
    return "\n".join(lines)
