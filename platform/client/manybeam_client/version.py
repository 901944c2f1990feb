"""The version of the client, and how it names itself to a service."""

__version__ = "0.1.0"
USER_AGENT = "manybeam-client/" + __version__
