"""Settings: URLs, addresses and secrets, read once from the environment.

Science is in YAML (`manybeam.spec`) and flags select among it. Each value has one place only.
Precedence: `MANYBEAM_*` > `./manybeam.toml` > user config > default.
"""

import base64
import hashlib
import logging
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from manybeam.addresses import (
    is_loopback,
    place_of,
    spare_loopback,
    sqlite_url,
    trust_authorities,
    without_password,
)
from manybeam.errors import InvalidSetting

logger = logging.getLogger(__name__)
_CLOSE = 0.75  # similarity from which a name of a file is suggested
_CLOSE_VARIABLE = 0.9  # of a variable; a cluster may set MANYBEAM_SERVICE_HOST
USER_CONFIG = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "manybeam.toml"
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "manybeam"


class Settings(BaseSettings):
    """Addresses and secrets of one deployment; the defaults are the embedded platform."""

    model_config = SettingsConfigDict(env_prefix="MANYBEAM_", extra="forbid", frozen=True)

    home: Path = Field(
        Path(".manybeam"), description="folder of the embedded platform: frames, zoo, runs, logs"
    )
    store: str = Field("", description="store of the frames: a folder or s3://bucket/prefix")
    tracking_uri: str = Field(
        "", description="MLflow tracking URI; if empty, a SQLite file in home"
    )
    artifacts: str = Field("", description="store of the weights; if empty, a folder in home")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="database: postgresql+psycopg://user:password@host/name or sqlite:///file; "
        "if empty, a SQLite file in home",
    )
    ray_address: str = Field("", description="Ray cluster to join; if empty, a local one")
    ray_insecure: bool = Field(
        default=False,
        description="join also a Ray cluster that asks for no token (manybeam --insecure)",
    )
    service_url: str = Field("http://127.0.0.1:8100", description="URL of the prediction service")
    serve_tokens: bool = Field(
        default=False,
        description="whether the prediction service requires a token also on loopback; on other "
        "addresses it always does",
    )
    token: SecretStr = Field(
        SecretStr(""), description="token that commands send to the prediction service"
    )
    zoo: Path = Field(
        default_factory=lambda: _zoo_folder(),
        description="folder of recipes, conditions and policies; if empty, `zoo` in the current "
        "folder, and without one, the copy in the package",
    )
    signing_key: str = Field(
        "", description="Ed25519 private key (PEM) that signs new versions; if empty, none"
    )
    trusted_keys: str = Field(
        "",
        description="public key, or folder of *.pub; if set, versions that none of these keys "
        "signed are refused",
    )
    control_url: str = Field("http://127.0.0.1:8000", description="URL of the pages and their API")
    s3_endpoint: str = Field("", description="S3 endpoint URL, for servers other than AWS")
    s3_access_key: str = Field("", description="S3 access key")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="S3 secret key")
    s3_region: str = Field("us-east-1", description="S3 region")
    s3_timeout_s: float = Field(20.0, gt=0, le=600, description="longest wait for the store [s]")
    ca_bundle: str = Field(
        "",
        description="PEM file of the certificate authorities to trust, for store and zoo; "
        "if empty, those of the libraries",
    )
    webhook_url: str = Field(
        "",
        description="URL to which alerts (a session drifted) are sent by POST; if empty, they are "
        "not sent",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="secret that signs these messages (Standard Webhooks): base64 of 24 to 64 "
        "bytes, with or without `whsec_` before it",
    )
    max_frame_px: int = Field(64_000_000, gt=0, description="largest frame accepted, in pixels")
    graphs: str = Field(
        "",
        description="folder of networks compiled for this machine; if empty, in the cache of the "
        "home",
    )
    reduced_precision: bool = Field(
        default=False,
        description="whether versions answer in bfloat16 on a CPU that has it, if their answers "
        "hardly change by it (`manybeam calibrate` measures that)",
    )
    max_work_px: int = Field(
        512_000_000,
        gt=0,
        description="most work accepted for one frame: pixels times members, at their pixel sizes",
    )

    @field_validator("service_url", "control_url", "s3_endpoint", "tracking_uri")
    @classmethod
    def _has_place(cls, url: str) -> str:
        """Refuse an address that no library could ask; without the slash at the end."""
        if url.startswith(("http://", "https://")) and place_of(url) is None:
            raise ValueError(
                f"{without_password(url)!r} has no host and port; "
                "put an ipv6 address in brackets, as in http://[::1]:8100"
            )
        return url.rstrip("/") if url.startswith("http") else url

    @field_validator("webhook_url")
    @classmethod
    def _is_web(cls, url: str) -> str:
        """Refuse what is no address of a web server, or has a password, which logs would show."""
        if url and (place_of(url) is None or not url.startswith(("http://", "https://"))):
            raise ValueError(f"{without_password(url)!r} is no url that begins with https://")
        if url and "@" in urlsplit(url).netloc:
            raise ValueError("a password in the url is not sent; use webhook_secret")
        return url

    @field_validator("webhook_secret")
    @classmethod
    def _is_key(cls, secret: SecretStr) -> SecretStr:
        """Refuse a secret that receivers could not read; the message does not repeat it."""
        if secret.get_secret_value() and not 24 <= len(webhook_key(secret)) <= 64:
            raise ValueError(
                "it is no base64 of 24 to 64 bytes; make one with: openssl rand -base64 32"
            )
        return secret

    @model_validator(mode="after")
    def _is_signed(self) -> Self:
        if self.webhook_url and not self.webhook_secret.get_secret_value():
            raise ValueError(
                "webhook_url is set without webhook_secret, and messages are always signed; "
                "make a secret with: openssl rand -base64 32"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - never a .env
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the two TOML files below the environment, and never read a `.env`."""
        here = TomlConfigSettingsSource(settings_cls, Path("manybeam.toml"))
        user = TomlConfigSettingsSource(settings_cls, USER_CONFIG)
        return init_settings, env_settings, here, user

    @property
    def service_headers(self) -> dict[str, str]:
        """The headers of our own requests to the prediction service: its token, if one is set."""
        text = self.token.get_secret_value()
        return {"Authorization": f"Bearer {text}"} if text else {}

    @property
    def cache(self) -> Path:
        """Copies that may be deleted: in the home; of a home that is read-only, in the user's."""
        inside = self.home.absolute() / "cache"
        found = next(one for one in (inside, *inside.parents) if os.access(one, os.F_OK))
        if os.access(found, os.W_OK):
            return inside
        return USER_CACHE / hashlib.sha256(str(self.home.resolve()).encode()).hexdigest()[:16]

    @property
    def store_url(self) -> str:
        """The root of all FrameSets and checkpoints."""
        return self.store or str((self.home / "store").resolve())

    @property
    def is_server(self) -> bool:
        """Whether the zoo is an MLflow server, which keeps the weights too."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def tracking_url(self) -> str:
        """The tracking URI for MLflow: the address of a server, or the embedded SQLite file."""
        return self.tracking_uri or sqlite_url((self.home / "zoo.db").resolve())

    @property
    def database_address(self) -> str:
        """The address of the database, with its password: PostgreSQL, or a SQLite file.

        Raises:
            InvalidSetting: none is set, and other machines use the same zoo. Locks and the audit
                log in a file of this machine would not protect it.
        """
        if given := self.database_url.get_secret_value():
            return given
        host, _ = place_of(self.tracking_uri) or ("", None)
        if self.tracking_uri.startswith(("http", "postgresql", "mysql")) and not is_loopback(host):
            raise InvalidSetting(
                "database_url is not set, and the zoo is shared with other machines",
                "they must share one database: locks, audit log, preferences and tokens",
                "export MANYBEAM_DATABASE_URL=postgresql+psycopg://user:password@host/name; "
                "if only this machine changes the zoo: sqlite:////folder/manybeam.db",
            )
        return sqlite_url((self.home / "manybeam.db").resolve())

    @property
    def artifacts_url(self) -> str:
        """The store of the weights if MLflow runs without a server."""
        return self.artifacts or (self.home / "weights").resolve().as_uri()


def webhook_key(secret: SecretStr) -> bytes:
    """Return the bytes of a secret of Standard Webhooks; none if it is no base64."""
    text = secret.get_secret_value().strip().removeprefix("whsec_")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read at the first call.

    Raises:
        InvalidSetting: an environment variable or a TOML line cannot be used.
    """
    for path in (Path("manybeam.toml"), USER_CONFIG):
        _check_toml(path)
    try:
        found = Settings()
    except ValidationError as error:
        raise InvalidSetting(
            "\n".join(map(_fault_words, error.errors(include_url=False))),
            "a setting is a MANYBEAM_ environment variable or a line of manybeam.toml",
            "correct it, or remove it to use the default",
        ) from error
    _warn_of_misspelt(os.environ)
    _check_bundle(found.ca_bundle)
    trust_authorities(found.ca_bundle)
    spare_loopback()
    return found


def _check_toml(path: Path) -> None:
    """Refuse a file that pydantic would pass over or that is not TOML."""
    if not path.exists():
        return
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        said = (error.strerror or str(error)).lower()
    except UnicodeDecodeError:
        said = "it is no UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        said = str(error).lower()
        if said.startswith("invalid value"):
            said += '; text needs quotes, as in home = "/data/manybeam"'
    else:
        return
    raise InvalidSetting(
        f"{path} cannot be read: {said}",
        "it holds settings, one in a line, as NAME = VALUE",
        "correct the file, or remove it to use the defaults",
    )


# The type of a fault in pydantic -> our words; {...} are values of the fault.
_WORDS: Mapping[str, str] = {
    "bool_parsing": "is neither 1 nor 0",
    "float_parsing": "is no number",
    "float_type": "is no number",
    "greater_than": "is too small; give more than {gt:g}",
    "int_from_float": "is no whole number",
    "int_parsing": "is no whole number",
    "int_type": "is no whole number",
    "less_than_equal": "is too large; give at most {le:g}",
    "path_type": "is no text; put it in quotes",
    "string_type": "is no text; put it in quotes",
    "value_error": "{error}",
}


def _fault_words(fault: Mapping[str, Any]) -> str:
    """Return one line for a fault: the setting, its value if it is no secret, what is wrong."""
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(name, Settings.model_fields, n=1, cutoff=_CLOSE)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(_names())}"
        return f"{name}: no setting of that name; {advice}"
    words = _WORDS.get(fault["type"], "{msg}").format(msg=fault["msg"], **fault.get("ctx", {}))
    is_number = fault["type"].startswith(("float", "int", "greater", "less"))
    value = f"{fault['input']!r} " if is_number else ""
    return f"{name}: {value}{words}" if name else words


def _names() -> list[str]:
    return sorted(Settings.model_fields)


def _warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Warn of variables that look like a setting and are none; others may belong to others."""
    known = [f"MANYBEAM_{name.upper()}" for name in _names()]
    for name in sorted(environment):
        if name.startswith("MANYBEAM_") and name not in known:
            for near in get_close_matches(name, known, n=1, cutoff=_CLOSE_VARIABLE):
                logger.warning("%s is no setting; did you mean %s?", name, near)


def starter_folder() -> Path:
    """Return the folder of the project's own `zoo` and `jobs`: in the package, or its source."""
    package = Path(__file__).parent
    packaged = package / "starter"
    return packaged if packaged.is_dir() else package.parents[1]


def _zoo_folder() -> Path:
    here = Path("zoo")
    is_one = any((here / kind).is_dir() for kind in ("conditions", "policies", "recipes"))
    return here if is_one else starter_folder() / "zoo"


def _check_bundle(path: str) -> None:
    if path and not Path(path).is_file():
        raise InvalidSetting(
            f"ca_bundle: there is no file {path!r}",
            "a PEM file with the certificates of the authorities is needed",
            "correct MANYBEAM_CA_BUNDLE",
        )
