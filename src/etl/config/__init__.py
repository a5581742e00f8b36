"""Settings and servers: the only reader of the environment and of `.env`; every default, limit and unit.

Validates whole at start and reports all that is wrong at once, by name and without any secret. Imports
nothing of the package but errors; protocols make themselves known through `PROTOCOLS`.
"""

from etl.config.kinds import Kind
from etl.config.loader import ConfigLoader, get_config
from etl.config.schema import SERVER_PROPERTIES, SETTINGS, Setting, Settings
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
