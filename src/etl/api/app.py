"""The application: its resources, its description, its page; without a server around it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.staticfiles import StaticFiles

from etl.api import problems
from etl.api.access.gate import PREFIX, Gate
from etl.api.problems import ProblemDetails
from etl.api.routes import audit as audit_routes
from etl.api.routes import (
    control,
    events,
    exporting,
    groups,
    jobs,
    letters,
    operations,
    pool,
    root,
    session,
    submitting,
    summary,
)
from etl.api.routes.asking import Viewer
from etl.api.services import Services

STATIC = Path(str(resources.files("etl.api"))) / "static"


def build(services: Services, audit: Callable[[dict[str, Any]], None]) -> FastAPI:
    """Return the application around these services."""
    app = FastAPI(title="etl-file-sync", version=metadata.version("etl-file-sync"), openapi_url=None)
    app.state.services = services
    app.state.feed = events.Feed(services)
    app.state.stopping = threading.Event()  # ends the streams, which otherwise end only when their clients leave
    problems.install(app)
    v1 = APIRouter(prefix=PREFIX)
    for router in (
        root.stats_router,
        summary.router,
        control.router,  # before the pool: a process's path may hold slashes
        pool.router,
        submitting.router,
        jobs.router,
        groups.router,
        operations.router,  # before the letters: `replays` is no place of a letter
        exporting.router,  # likewise
        letters.router,
        audit_routes.router,
        events.router,
        session.router,
    ):
        v1.include_router(router)
    for router in (root.router, root.old, v1):
        app.include_router(router)

    @app.get("/openapi.json", include_in_schema=False)
    def description(_who: Viewer) -> dict[str, Any]:
        return describe(app)

    app.mount("/ui", StaticFiles(directory=STATIC, html=True, check_dir=False), name="page")
    app.add_middleware(Gate, guard=services.guard, audit=audit, note=services.requests.note)
    return app


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the description of the application (OpenAPI), with our problems instead of the library's own 422."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(
        title=app.title,
        version=app.version,
        description="Files moved by jobs on Kafka: what is under way, what failed, and what to do about it. "
        "docs/api.md tells it in words.",
        routes=app.routes,
    )
    schemas = found["components"]["schemas"]
    problem = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["ProblemDetails"] = problem
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in found["paths"].values():
        for operation in path.values():
            answers = operation["responses"]
            if "HTTPValidationError" in str(answers.get("422")):
                answers["422"] = problems.describe(422)[422]
            answers.setdefault("400", problems.describe(400)[400])
            operation["operationId"] = re.sub(r"_(api_v1|at_root).*", "", operation["operationId"]) + (
                "_at_root" if "_at_root" in operation["operationId"] else ""
            )
    app.openapi_schema = found
    return found
