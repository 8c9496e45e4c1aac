"""Which instructions this machine's processor has, as Linux lists them; knows no engine and no network."""

from __future__ import annotations

from pathlib import Path


def cpu_flags(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the processor's feature names as Linux writes them (avx512_bf16, amx_bf16, ...); empty elsewhere."""
    try:
        lines = info.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )


def cpu_has_bf16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this CPU multiplies bf16 natively; False where the system does not tell."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_flags(info))
