"""`manybeam serve`: the prediction service on this machine's platform."""

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from manybeam.addresses import place_of, reachable, unreached_hint, url_of
from manybeam.cli.service import rollouts
from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress
from manybeam.errors import InvalidSetting, ManybeamError, NotAuthenticated, Unreachable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from manybeam.serve.app import ServiceState

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The prediction service.\n\nExample: manybeam serve up graphene",
)
app.command()(rollouts.shadow)
app.command()(rollouts.canary)
app.command()(rollouts.promote)
app.command()(rollouts.rollback)


@app.command()
def up(
    refs: Annotated[
        list[str] | None,
        typer.Argument(help="Ensembles to load now; others are loaded at their first use."),
    ] = None,
    *,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; that of MANYBEAM_SERVICE_URL if left out. On one of IPv6, "
            "Ray's proxy in Python serves, which is slower and repeats no request."
        ),
    ] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; likewise.")] = 0,
    tokens: Annotated[
        bool | None,
        typer.Option(
            help="Answer only callers with a token. Needed on an address that other machines can "
            "reach. If left out, a running service stays as it is."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Answer other machines without tokens: anybody may ask. A running service with "
            "tokens needs --no-tokens too.",
        ),
    ] = False,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that answer, spread over the hosts of the cluster; at first 1. With 2, "
            "the service answers on while one is started again. Another number alone restarts "
            "none: each keeps its threads until something else is changed too.",
        ),
    ] = None,
    cpus_per_replica: Annotated[
        float | None, typer.Option(min=0, help="Cores reserved for each; at first none.")
    ] = None,
    gpus_per_replica: Annotated[
        float | None, typer.Option(min=0, help="GPUs reserved for each; at first none.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=0, help="Cores for Ray; 0 for all.")] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Start the service at MANYBEAM_SERVICE_URL; start the platform too if it does not run.

    A running service is changed while it answers. What is left out stays as it is, and if the
    change fails, the service goes on as it was.

    Example: manybeam serve up graphene --host 0.0.0.0 --tokens --replicas 2
    """
    with Progress("start the service"):
        from manybeam.cluster.head import start_head
        from manybeam.cluster.running import head
        from manybeam.serve.app import check_start, run_service
        from manybeam.serve.ports import port_in_use, port_is_free
        from manybeam.settings import settings

        where = settings()
        host, port = _listening_place(where.service_url, host, port)
        if not where.ray_address:
            if head(where.home) is None:
                if not port_is_free(host, port):
                    raise port_in_use(host, port)
                check_start(refs, host, tokens=tokens, insecure=insecure)
            start_head(where.home, cpus or None)
        state = run_service(
            refs or None,
            host=host,
            port=port,
            replicas=replicas,
            cpus_per_replica=cpus_per_replica,
            gpus_per_replica=gpus_per_replica,
            tokens=tokens,
            insecure=insecure,
        )
    say(_where(state))
    if state.needs_token:
        say(f"callers need a token; {_who_has_tokens()}")
    if not state.needs_token or where.service_headers:
        _list_started(url_of(reachable(host), port), form)


@app.command("ls")
def list_served(*, form: FormOption = Form.auto) -> None:
    """List the ensembles of the service; on stderr, where its replicas run.

    Example: manybeam serve ls
    """
    from manybeam.settings import settings

    _list(settings().service_url, form)
    if where := _known_where():
        say(where)


@app.command()
def stop() -> None:
    """Stop the service; the platform stays up.

    Example: manybeam serve stop
    """
    from manybeam.serve.app import stop_service

    with Progress("stop the service"):
        was_running = stop_service()
    say("stopped" if was_running else "no service was running")


def _known_where() -> str:
    """Return where the replicas run; "" if this machine has no cluster to ask."""
    from manybeam.serve.app import service_state

    try:
        state = service_state()
    except ManybeamError:
        return ""
    return _where(state) if state else ""


def _where(state: "ServiceState") -> str:
    """Return how many replicas run, and on which hosts."""
    counts = Counter(state.hosts)
    listed = ", ".join(f"{count} on {host}" for host, count in sorted(counts.items()))
    return f"{len(state.hosts)} replica{'s' if len(state.hosts) != 1 else ''}: {listed or 'none'}"


def _listening_place(service_url: str, host: str, port: int) -> tuple[str, int]:
    """Return where to listen: the options, else the host and the port of the service's URL."""
    known, known_port = place_of(service_url) or ("", None)
    is_plain = known_port is not None and service_url.lower() == url_of(known, known_port)
    if not is_plain and not (host and port):
        raise InvalidSetting(
            f"service_url: {service_url!r} cannot be listened on",
            "a URL of a host and a port, such as http://127.0.0.1:8100, is needed",
            "set MANYBEAM_SERVICE_URL; behind a proxy: "
            "manybeam serve up --host 127.0.0.1 --port 8100 --tokens",
        )
    return host or known, port or known_port or 0


def _who_has_tokens() -> str:
    """Return how many instruments have a token, or how to make one; the service runs already."""
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Tokens

    try:
        at, listed = Tokens(open_database()).valid()
    except ManybeamError as error:
        return f"how many have one is not known now: {error.what}"
    count = sum(
        {"predict", "select"} & set(one.scopes) != set() and (not one.expires or one.expires > at)
        for one in listed
    )
    if not count:
        return "there is none yet: manybeam instrument add STEM-1"
    return f"{count} valid: manybeam instrument ls --tokens"


def _list_started(url: str, form: Form) -> None:
    """Print the ensembles of a service that was started; if it refuses to list them, say so."""
    try:
        _list(url, form)
    except NotAuthenticated as error:
        say(f"the service is up, but it does not list its ensembles: {error}")


def _list(url: str, form: Form) -> None:
    """Print the ensembles of the service at a URL."""
    import urllib3

    from manybeam.cluster.identity import check_platform
    from manybeam.settings import settings

    headers = settings().service_headers
    try:
        answer = urllib3.request(
            "GET", f"{url}/v1/ensembles", headers=headers, timeout=10.0, retries=False
        )
    except urllib3.exceptions.HTTPError as error:
        hint = unreached_hint(url, str(error), "manybeam serve up")
        raise Unreachable(f"no service answers at {url}", type(error).__name__, hint) from error
    check_platform(url, answer.headers)
    if answer.status in (401, 403):
        raise NotAuthenticated(
            f"the service at {url} refuses this command",
            _detail(answer),
            "export MANYBEAM_TOKEN=...; manybeam instrument token makes one",
        )
    if answer.status != 200:
        raise Unreachable(f"HTTP {answer.status} from {url}", answer.data.decode()[:300], "")
    empty = "no ensemble is loaded yet; one is loaded at its first request"
    emit(answer.json()["ensembles"], form, title=url, empty=empty)


def _detail(answer: "BaseHTTPResponse") -> str:
    """Return why a request was refused; of a proxy's answer, which is no problem, its status."""
    with suppress(ValueError, LookupError, TypeError):
        return str(answer.json()["detail"])
    return f"HTTP {answer.status}, from a proxy before it"
