"""The log of a process of the service."""

import builtins
import logging

# Otherwise Ray keeps a thousand lines in memory before it writes them, and so all that matters.
WRITTEN_AT_ONCE = {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"}


def log_to_serve() -> None:
    """Let our messages go to the file of this process among the logs of Ray Serve.

    Without it they would be lines of standard error, of which Ray knows no level.
    """
    from ray.serve._private import logging_utils

    # Ray's own `print`, through which Python writes tracebacks, writes them as tuples. Standard
    # output goes to the same file without it.
    builtins.print = getattr(logging_utils, "buildin_print", builtins.print)
    ours, rays = logging.getLogger("manybeam"), logging.getLogger("ray.serve")
    ours.handlers[:] = rays.handlers
    ours.setLevel(logging.INFO)
    ours.propagate = False
