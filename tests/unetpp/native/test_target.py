"""What a CPU's flags are taken for."""

from __future__ import annotations

import pytest

from unetpp.native import target
from unetpp.native.target import Target, target_of

AVX2 = {"avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
BF16 = AVX512 | {"avx512_bf16"}
AMX = BF16 | {"amx_tile", "amx_bf16"}


@pytest.mark.parametrize(
    ("flags", "allowed", "fp32", "bf16", "int8"),
    [
        (set(), True, "AVX2", "bf16", "VNNI"),
        ({"avx2"}, True, "AVX2", "bf16", "VNNI"),
        (AVX2, True, Target(8), "bf16", "VNNI"),
        (AVX512 - {"avx512vl"}, True, Target(8), "bf16", "VNNI"),
        (AVX512, True, Target(16), "bf16", "VNNI"),
        (AVX512 | {"avx512_vnni"}, True, Target(16), "bf16", Target(16, "int8")),
        (AVX2 | {"avx512_bf16", "avx512_vnni"}, True, Target(8), "bf16", "VNNI"),
        (BF16, True, Target(16), Target(16, "bf16"), "VNNI"),
        (BF16 | {"amx_tile"}, True, Target(16), Target(16, "bf16"), "VNNI"),
        (AMX | {"avx512_vnni"}, True, Target(16), Target(16, "bf16", tiles=True), Target(16, "int8")),
        (AMX, False, Target(16), Target(16, "bf16"), "VNNI"),
    ],
)  # fmt: skip
def test_flags(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], allowed: bool, fp32: Target | str, bf16: Target | str,
    int8: Target | str,
) -> None:  # fmt: skip
    """Words stand for what a refusal names."""
    monkeypatch.setattr(target, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(target, "_tiles_allowed", lambda: allowed)
    int16 = "AVX2" if fp32 == "AVX2" else Target(8, "int16")
    for precision, expected in (("fp32", fp32), ("bf16", bf16), ("int16", int16), ("int8", int8)):
        found = target_of(precision)
        assert found == expected if isinstance(expected, Target) else isinstance(found, str) and expected in found


def test_the_kernel_is_asked_for_tiles_only_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(target, "_tiles_allowed", lambda: asked.append(1) or True)
    monkeypatch.setattr(target, "cpu_flags", lambda: frozenset(BF16))
    target_of("bf16")
    monkeypatch.setattr(target, "cpu_flags", lambda: frozenset(AMX))
    target_of("fp32")
    assert not asked
    target_of("bf16")
    assert asked


@pytest.mark.parametrize(("answer", "allowed"), [(0, True), (-1, False)])
def test_the_kernels_answer_counts(monkeypatch: pytest.MonkeyPatch, answer: int, allowed: bool) -> None:
    calls = []

    class Library:
        def __init__(self, name: None, use_errno: bool) -> None:
            self.syscall = lambda *arguments: calls.append(arguments) or answer

    monkeypatch.setattr(target.ctypes, "CDLL", Library)
    assert target._tiles_allowed.__wrapped__() is allowed
    assert calls == [(158, 0x1023, 18)]  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)


def test_channels_are_padded_to_vectors_and_tiles() -> None:
    counts = (1, 16, 17, 32, 33, 48)
    assert [Target(8).padded(n) for n in counts] == [Target(16).padded(n) for n in counts] == [16, 16, 32, 32, 48, 48]
    assert [Target(16, "bf16", tiles=True).padded(n) for n in counts] == [16, 16, 32, 32, 64, 64]
    assert [Target(16, "int8").padded(n) for n in counts] == [16, 16, 32, 32, 48, 48]


def test_four_bytes_hold_one_two_or_four_numbers() -> None:
    targets = Target(8), Target(16, "bf16"), Target(8, "int16"), Target(16, "int8")
    assert [(target.size, target.together) for target in targets] == [(4, 1), (2, 2), (2, 2), (1, 4)]
    assert [target.most for target in targets] == [None, None, 32767, 255]
