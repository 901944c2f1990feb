"""Settings: faults of variables and of manybeam.toml, in our words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.errors import InvalidSetting
from manybeam.serve.app import PLATFORM, TOKENS
from manybeam.serve.haproxy import URL
from manybeam.settings import Settings, settings


@pytest.fixture
def toml(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_settings: Callable[[dict[str, str]], None],
) -> Path:
    """The settings file of a folder of its own."""
    monkeypatch.chdir(tmp_path)
    use_settings({})
    return tmp_path / "manybeam.toml"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b'hom = "x"', "hom: no setting of that name; did you mean home", id="name"),
        pytest.param(b"[server]", "server: no setting of that name; there are", id="group"),
        pytest.param(b"home = /data", "line 1, column 8.*text needs quotes", id="quotes"),
        pytest.param(b'home = "a"\nhome = "b"', "cannot overwrite a value", id="twice"),
        pytest.param(b"\xff\xfe", "no UTF-8 text", id="encoding"),
        pytest.param(b'max_frame_px = "many"', "max_frame_px: 'many' is no whole", id="whole"),
        pytest.param(b"max_frame_px = -3", "-3 is too small; give more than 0", id="small"),
        pytest.param(b"s3_timeout_s = 1e9", "is too large; give at most 600", id="large"),
        pytest.param(b"home = 5", "home: is no text; put it in quotes", id="text"),
    ],
)
def test_a_fault_of_the_file_is_told_in_our_words(content: bytes, told: str, toml: Path) -> None:
    toml.write_bytes(content)
    with pytest.raises(InvalidSetting, match=told):
        settings()


def test_a_folder_of_that_name_is_not_passed_over(toml: Path) -> None:
    toml.mkdir()
    with pytest.raises(InvalidSetting, match="is a directory"):
        settings()


def test_a_secret_is_never_repeated(toml: Path) -> None:
    toml.write_text('s3_secret_key = ["hush-hush"]')
    with pytest.raises(InvalidSetting) as caught:
        settings()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("MANYBEAM_HOEM", 1),
        ("MANYBEAM_TRACKING_URL", 1),
        ("MANYBEAM_SERVICE_HOST", 0),  # Kubernetes sets it for a service `manybeam`
        (TOKENS, 0),
        (URL, 0),
        (PLATFORM, 0),
        ("MANYBEAM_TOKEN", 0),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_warned_of(
    name: str,
    count: int,
    toml: Path,
    use_settings: Callable[[dict[str, str]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not toml.exists()
    use_settings({name: "x"})
    settings()
    assert sum(name in record.getMessage() for record in caplog.records) == count


@pytest.mark.parametrize("name", [PLATFORM, TOKENS, URL])
def test_a_variable_of_the_replicas_has_no_name_of_a_setting(name: str) -> None:
    assert name.removeprefix("MANYBEAM_").lower() not in Settings.model_fields
