"""Render the documentation page from the OpenAPI description, without scripts or anything from other sites."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape


def api_page(openapi: dict[str, Any]) -> str:
    """HTML of an OpenAPI description.

    Args:
        openapi: with ``info``, ``paths`` and ``components``.
    """
    environment = Environment(
        loader=PackageLoader("dynamo_mtl.serving", "static"), autoescape=select_autoescape(default=True)
    )
    routes = [
        {
            "method": method.upper(),
            "path": path,
            "says": operation.get("description", ""),
            "body": _shown(operation.get("requestBody", {}).get("content", {}).get("application/json", {})),
            "answers": {status: answer["description"] for status, answer in operation["responses"].items()},
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    failure = openapi.get("components", {}).get("schemas", {}).get("Failure", {})
    return environment.get_template("api.html.j2").render(info=openapi["info"], routes=routes, failure=_shown(failure))


def _shown(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) if value else ""
