"""Puts the door together: routes, entrance, errors, OpenAPI."""

from collections.abc import Callable, Sequence

from litestar import Litestar, Router
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag
from litestar.types import ControllerRouterHandler

from corral import __version__
from corral.doors.rest.actions import ActionDoor
from corral.doors.rest.artifacts import ArtifactDoor
from corral.doors.rest.blobs import BlobDoor
from corral.doors.rest.entrance import (
    JsonRequest,
    RequestIds,
    authenticate,
    known_query,
    provide_caller,
    provide_services,
)
from corral.doors.rest.events import EventDoor
from corral.doors.rest.fleet import WorkerDoor
from corral.doors.rest.functions import FunctionDoor
from corral.doors.rest.health import health, metrics, ready, version
from corral.doors.rest.ledger import LedgerDoor
from corral.doors.rest.logs import LogDoor
from corral.doors.rest.problems import on_bug, on_corral_error, on_http_exception
from corral.doors.rest.routes import RouteDoor
from corral.doors.rest.services import Services
from corral.doors.rest.tasks import GroupDoor, TaskDoor, payload_schema
from corral.doors.rest.unread import UnreadBodies
from corral.kernel.errors import CorralError

_DESCRIPTION = """\
Queue tasks, follow their logs, fetch their artifacts, look at the fleet.

Every error is `application/problem+json` with a stable `code`, a `cause` as values, and a `cure`;
`mistakes` lists everything that is wrong with a request at once. Requests carry `Authorization: Bearer <token>`
unless the scheduler listens on loopback without tenants. Times are Unix seconds, sizes are bytes.
"""


def build_rest(services: Services, *, beside: Sequence[ControllerRouterHandler] = ()) -> Litestar:
    """The ASGI application over ``services``. Starts nothing and owns nothing.

    ``beside`` are other applications on the same port; their errors are answered as this door's.
    """
    api = Router(
        "/api/v1",
        route_handlers=[
            TaskDoor,
            GroupDoor,
            payload_schema,
            LogDoor,
            ArtifactDoor,
            BlobDoor,
            ActionDoor,
            FunctionDoor,
            WorkerDoor,
            RouteDoor,
            LedgerDoor,
            EventDoor,
            version,
        ],
        guards=[authenticate, known_query],
        security=[{"token": []}],
    )
    guarded = Router("/", route_handlers=[metrics], guards=[authenticate])
    return Litestar(
        route_handlers=[api, guarded, health, ready, *beside],
        dependencies={
            "services": Provide(provide_services, sync_to_thread=False),
            "caller": Provide(provide_caller, sync_to_thread=False),
        },
        request_class=JsonRequest,
        middleware=[RequestIds(), UnreadBodies()],
        exception_handlers={
            CorralError: on_corral_error,
            HTTPException: on_http_exception,
            Exception: on_bug,
        },
        openapi_config=OpenAPIConfig(
            title="Corral",
            version=__version__,
            description=_DESCRIPTION,
            path="/schema",
            use_handler_docstrings=True,
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
            components=Components(
                security_schemes={
                    "token": SecurityScheme(type="http", scheme="bearer", description="A tenant's token")
                },
            ),
            tags=[
                Tag(name="tasks", description="Queued units of work; each attempt is a run"),
                Tag(name="logs", description="What runs wrote"),
                Tag(name="artifacts", description="Named outputs of runs"),
                Tag(name="actions", description="Hermetic commands, cached by digest"),
                Tag(name="blobs", description="Content by digest: inputs of tasks"),
                Tag(name="functions", description="Named Wasm programs, their revisions and instances"),
                Tag(name="fleet", description="Workers"),
                Tag(name="ledger", description="Who did what"),
                Tag(name="health", description="For load balancers and Prometheus"),
            ],
        ),
        request_max_body_size=services.limits.body_bytes,
        logging_config=None,
        on_app_init=[_remember_services(services)],
        debug=False,
    )


def _remember_services(services: Services) -> Callable[[AppConfig], AppConfig]:
    def remember(config: AppConfig) -> AppConfig:
        config.state.services = services
        return config

    return remember
