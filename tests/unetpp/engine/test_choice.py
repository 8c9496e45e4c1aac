"""What `choose_engine` takes on which machine, what it refuses, and the reasons that it gives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import unetpp.engine
import unetpp.engine.openvino
from tests.engines import AUTO, AUTO_PRECISION, NATIVE, UNSUPPORTED, WHOLES
from unetpp.engine import choose_engine, engine_reasons
from unetpp.errors import EngineError
from unetpp.native import target
from unetpp.native.support import WHOLE, best_precision
from unetpp.package import Package
from unetpp.processor import cpu_flags, cpu_has_bf16

native_only = pytest.mark.skipif(not NATIVE, reason="no machine code for this CPU")


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Package]) -> Package:
    return make_package()


def test_what_is_unknown_or_missing_is_named(
    make_package: Callable[..., Package], package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="engine 'tensorrt' is unknown; choose auto, triton, native, openvino, torch"):
        choose_engine(package, name="tensorrt")
    with pytest.raises(EngineError, match="precision 'int4' is unknown"):
        choose_engine(package, precision="int4")
    with pytest.raises(EngineError, match="at least one thread"):
        choose_engine(package, threads=0)
    with pytest.raises(EngineError, match="tta 'eight' is unknown; choose none, mirror, flips, d4"):
        choose_engine(package, tta="eight")  # type: ignore[arg-type]
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    monkeypatch.setattr(unetpp.engine, "cpu_has_bf16", lambda: False)
    with pytest.raises(EngineError, match="does not multiply bf16"):
        choose_engine(package, name="openvino", precision="bf16")
    assert choose_engine(package, name="openvino").precision == "fp32"
    monkeypatch.setattr(unetpp.engine.openvino, "openvino_version", lambda: None)
    with pytest.raises(EngineError, match="OpenVINO is not installed"):
        choose_engine(package, name="openvino")
    assert ("openvino", False, "not installed") in engine_reasons()
    assert choose_engine(make_package(conv="dw_pw")).name == "torch"


@native_only
def test_auto_is_native_in_the_cpus_best_precision(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    engine = choose_engine(package, threads=2, tile_shape=(32, 48))
    assert (engine.name, engine.device, engine.threads) == (AUTO, "cpu", 2)
    assert engine.precision == AUTO_PRECISION
    assert engine.version and all(part.isdigit() for part in engine.version.split(".")[:2])
    assert choose_engine(package, precision="fp32").name == "native"


@pytest.mark.parametrize("config", UNSUPPORTED, ids=str)
def test_auto_is_openvino_where_there_is_no_machine_code_for_the_network(
    make_package: Callable[..., Package], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    package = make_package(**config)
    engine = choose_engine(package)
    assert (engine.name, engine.device) == ("openvino", "cpu")
    assert engine.precision == ("bf16" if cpu_has_bf16() else "fp32")
    reason = "convolutions are dw_pw, not pw_dw" if "conv" in config else "upsamples by deconvolution"
    with pytest.raises(EngineError, match=f"native engine cannot run this model here: .*{reason}; use --engine openv"):
        choose_engine(package, name="native", precision="fp32")


def test_auto_is_openvino_where_there_is_no_machine_code_for_the_cpu(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    flags = cpu_flags() - {"avx2", "avx512_bf16"}
    monkeypatch.setattr(target, "cpu_flags", lambda: flags)
    for precision, reason in (("fp32", "no x86-64 CPU with AVX2"), ("bf16", "does not multiply bf16 in AVX-512")):
        with pytest.raises(EngineError, match=f"{reason}.*; use --engine openvino"):
            choose_engine(package, name="native", precision=precision)
    assert choose_engine(package, precision="fp32").name == "openvino"
    assert {name: available for name, available, _ in engine_reasons()}["native"] is False


@native_only
@pytest.mark.parametrize("error", [EngineError("no such instruction"), RuntimeError("no such instruction")], ids=repr)
def test_auto_is_openvino_where_making_machine_code_fails(
    package: Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    monkeypatch.setattr("unetpp.native.network.machine_code", fail)
    with caplog.at_level(logging.WARNING):
        engine = choose_engine(package, precision="fp32")
    assert engine.name == "openvino"
    assert "the native engine is left out: no such instruction" in caplog.messages
    with pytest.raises(type(error), match="no such instruction"):
        choose_engine(package, name="native", precision="fp32")


@pytest.mark.parametrize("precision", WHOLE)
def test_whole_numbers_are_the_native_engines_alone(
    make_package: Callable[..., Package], package: Package, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Where they cannot be used the reason is told; nothing else is taken in their place."""
    flags = cpu_flags() | {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
    monkeypatch.setattr(target, "cpu_flags", lambda: flags)
    refusal = f"{precision} cannot be used here: "
    for name in ("openvino", "torch", "triton"):
        with pytest.raises(EngineError, match=f"{refusal}the {name} engine has none; use --precision"):
            choose_engine(package, name=name, precision=precision)
    for config, reason in (({"norm": "none"}, "no batch norms"), ({"conv": "dw_pw"}, "dw_pw, not pw_dw")):
        for name in ("auto", "native"):
            with pytest.raises(EngineError, match=f"{refusal}.*{reason}"):
                choose_engine(make_package(**config), name=name, precision=precision)
    monkeypatch.setattr(target, "cpu_flags", lambda: flags - {"avx2", "avx512_vnni"})
    reason = {"int8": r"does not multiply bytes in AVX-512 \(VNNI\)", "int16": "no x86-64 CPU with AVX2"}[precision]
    with pytest.raises(EngineError, match=f"{refusal}this .*{reason}"):
        choose_engine(package, precision=precision)


@pytest.mark.parametrize("precision", WHOLES)
def test_whole_numbers_are_taken_where_asked_for(
    package: Package, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    engine = choose_engine(package, precision=precision)
    assert (engine.name, engine.precision) == ("native", precision) and "+" not in engine.version

    def fail(*_: object) -> None:
        raise EngineError("no such instruction")

    monkeypatch.setattr("unetpp.native.network.machine_code", fail)
    with pytest.raises(EngineError, match="no such instruction"):
        choose_engine(package, precision=precision)


@native_only
def test_auto_is_int16_on_cpus_with_nothing_better(
    make_package: Callable[..., Package], package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a network has norms; fp32 is what is asked for or has twice the lanes. int8 is never taken unasked."""
    monkeypatch.setattr(unetpp.engine, "_cuda_device", lambda: None)
    monkeypatch.setattr(unetpp.engine, "cpu_has_bf16", lambda: False)
    wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
    for flags, found, when in (({"avx2", "fma"}, "int16", "int16 in place of fp32"),
                               ({"avx2", "fma"} | wide, "fp32", "int16 on request, int8 on request")):  # fmt: skip
        monkeypatch.setattr(target, "cpu_flags", lambda flags=flags: frozenset(flags))
        if not flags <= cpu_flags():
            assert best_precision(package.spec) == found  # its machine code would not run here
            continue
        assert (choose_engine(package).name, choose_engine(package).precision) == ("native", found)
        assert choose_engine(package, precision="fp32").precision == "fp32"
        assert choose_engine(make_package(norm="none")).precision == "fp32"
        reason = {name: reason for name, _, reason in engine_reasons()}["native"]
        assert reason == f"machine code for this CPU by LLVM, no bf16 in hardware, {when}"
