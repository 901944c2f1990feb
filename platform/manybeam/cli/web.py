"""`manybeam web`: the pages and the HTTP interface of the zoo, on this machine."""

from typing import Annotated

import typer

from manybeam.cli.terminal.output import first_sign, say
from manybeam.cli.terminal.signals import leave_to_server


def web(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow an address that other machines can reach.")
    ] = False,
    refresh: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Seconds between two refreshes of the zoo.")
    ] = 3.0,
) -> None:
    """Serve the pages of the zoo until Ctrl-C. Changes need the admin token.

    Example: manybeam web --port 8000
    """
    from manybeam.settings import settings
    from manybeam.web.app import run
    from manybeam.web.auth import TOKEN_FILE, admin_token

    leave_to_server()
    _, is_new = admin_token(settings().home)
    path = settings().home / TOKEN_FILE

    def ready(url: str) -> None:
        first_sign.end()
        typer.echo(url)
        say(f"{'new' if is_new else 'present'} admin token in {path}; Ctrl-C stops the server")

    run(host, port, expose=expose, refresh_s=refresh, ready=ready)
