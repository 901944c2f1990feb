"""`manybeam serve`: the prediction service on this machine's platform."""

from typing import Annotated

import typer

from manybeam.addresses import place_of, url_of
from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress
from manybeam.errors import InvalidSetting, Unreachable

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The prediction service.\n\nExample: manybeam serve up graphene",
)


@app.command()
def up(
    refs: Annotated[
        list[str] | None,
        typer.Argument(help="Ensembles to load now; others are loaded at their first use."),
    ] = None,
    *,
    cpus: Annotated[int, typer.Option(min=0, help="Cores for Ray; 0 for all.")] = 0,
    expose: Annotated[
        bool,
        typer.Option("--expose", help="Answer other machines too; there is no access control yet."),
    ] = False,
    form: FormOption = Form.auto,
) -> None:
    """Start the service at MANYBEAM_SERVICE_URL; start the platform too if it does not run.

    Example: manybeam serve up graphene
    """
    with Progress("start the service"):
        from manybeam.cluster.head import start_head
        from manybeam.cluster.running import head
        from manybeam.serve.app import run_service
        from manybeam.serve.ports import port_in_use, port_is_free
        from manybeam.settings import settings

        where = settings()
        host, port = place_of(where.service_url) or ("", None)
        if port is None or where.service_url.lower() != url_of(host, port):
            raise InvalidSetting(
                f"service_url: {where.service_url!r} cannot be listened on",
                "a URL of a host and a port, such as http://127.0.0.1:8100, is needed",
                "set MANYBEAM_SERVICE_URL",
            )
        if not where.ray_address:
            if head(where.home) is None and not port_is_free(host, port):
                raise port_in_use(host, port)
            start_head(where.home, cpus or None)
        run_service(refs or [], host=host, port=port, expose=expose)
    list_served(form=form)


@app.command("ls")
def list_served(*, form: FormOption = Form.auto) -> None:
    """List the ensembles of the service.

    Example: manybeam serve ls
    """
    import urllib3

    from manybeam.cluster.identity import check_platform
    from manybeam.settings import settings

    url = settings().service_url
    try:
        answer = urllib3.request("GET", f"{url}/v1/ensembles", timeout=10.0, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(
            f"no service answers at {url}", type(error).__name__, "manybeam serve up"
        ) from error
    check_platform(url, answer.headers)
    empty = "no ensemble is loaded yet; one is loaded at its first request"
    emit(answer.json()["ensembles"], form, title=url, empty=empty)


@app.command()
def stop() -> None:
    """Stop the service; the platform stays up.

    Example: manybeam serve stop
    """
    from manybeam.serve.app import stop_service

    with Progress("stop the service"):
        was_running = stop_service()
    say("stopped" if was_running else "no service was running")
