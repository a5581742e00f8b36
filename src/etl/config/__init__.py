"""Settings and servers, with every default, limit and unit. The only reader of the environment and of `.env`.

Validates everything at the start and reports all errors at once, by name and without any secret. Protocols register
themselves in `PROTOCOLS`.
"""

from etl.config.kinds import Kind
from etl.config.loader import ConfigLoader, get_config
from etl.config.rows import Setting
from etl.config.schema import SERVER_PROPERTIES, SETTINGS, Settings
from etl.config.sources import read_env_file
from etl.models.server import PROTOCOLS, ProtocolSpec, ServerConfig, TransferSettings

__all__ = [
    "PROTOCOLS",
    "SERVER_PROPERTIES",
    "SETTINGS",
    "ConfigLoader",
    "Kind",
    "ProtocolSpec",
    "ServerConfig",
    "Setting",
    "Settings",
    "TransferSettings",
    "get_config",
    "read_env_file",
]
