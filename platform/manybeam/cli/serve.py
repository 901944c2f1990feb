"""`manybeam serve`: the prediction service on this machine's platform."""

from typing import Annotated
from urllib.parse import urlsplit

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.errors import InvalidSetting, Unreachable

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The prediction service.\n\nExample: manybeam serve up graphene",
)


@app.command()
def up(
    refs: Annotated[
        list[str] | None, typer.Argument(help="Ensembles to load first; others load on first use.")
    ] = None,
    *,
    cpus: Annotated[int, typer.Option(min=0, help="Cores Ray may use; all if 0.")] = 0,
    expose: Annotated[
        bool, typer.Option("--expose", help="Answer other machines too; there are no tokens yet.")
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Start the service where MANYBEAM_SERVICE_URL says; starts the platform if it is down.

    Example: manybeam serve up graphene
    """
    from manybeam.cluster.head import start_head
    from manybeam.cluster.running import head
    from manybeam.serve.app import run_service
    from manybeam.serve.ports import port_in_use, port_is_free
    from manybeam.settings import settings

    where = settings()
    url = urlsplit(where.service_url)
    if not url.hostname or not url.port:
        raise InvalidSetting(
            f"service_url: {where.service_url!r} names no host and port",
            "for example http://127.0.0.1:8100",
            "set MANYBEAM_SERVICE_URL",
        )
    if not where.ray_address:
        if head(where.home) is None and not port_is_free(url.hostname, url.port):
            raise port_in_use(url.hostname, url.port)
        start_head(where.home, cpus or None)
    run_service(refs or [], host=url.hostname, port=url.port, expose=expose)
    list_served(form=form)


@app.command("ls")
def list_served(*, form: FormOption = Form.auto) -> None:
    """List the ensembles the service answers with.

    Example: manybeam serve ls
    """
    import urllib3

    from manybeam.settings import settings

    url = settings().service_url
    try:
        answer = urllib3.request("GET", f"{url}/v1/ensembles", timeout=10.0, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(
            f"no service at {url}", type(error).__name__, "manybeam serve up"
        ) from error
    emit(answer.json()["ensembles"], form, title=url)


@app.command()
def stop() -> None:
    """Stop the service; the platform stays up.

    Example: manybeam serve stop
    """
    from manybeam.serve.app import stop_service

    say("stopped" if stop_service() else "no service was running")
