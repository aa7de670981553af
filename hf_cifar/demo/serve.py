"""The server of a run's page, which answers this machine and no other."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from hf_cifar.demo.examples import write_examples
from hf_cifar.demo.facts import page_facts
from hf_cifar.demo.local import HOST
from hf_cifar.demo.page import LAUNCH, PictureClassifier, build_page
from hf_cifar.evaluation.classifier import load_classifier

# The browser loads nothing from elsewhere, and no other page may frame this one.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:;"
    " font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
# Routes of Gradio that fetch what a request names.
FETCHING = ("/gradio_api/proxy=", "/gradio_api/file=http:", "/gradio_api/file=https:")


def make_server(run: str, folder: Path) -> uvicorn.Server:
    """Return the server of a run's page; it has yet to run.

    folder: of `private_folder`. Raises UserError for a model that can't be loaded.
    """
    classifier = load_classifier(run, several_labels=True)
    path = Path(run).expanduser()
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    facts = page_facts(classifier, metrics, path.resolve().name)
    answers = PictureClassifier(classifier.model, classifier.transforms.processor, facts, path)
    page = build_page(answers, facts, write_examples(run, classifier, folder / "examples"))
    app = gr.mount_gradio_app(FastAPI(openapi_url=None), page, path="/", **LAUNCH)
    app.add_middleware(_Closed)
    # A page of somebody else's, under a name that leads to this machine, gets no answer.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    return _Server(config)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, without a word on the connections that browsers keep open."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


class _Closed:
    """Keeps the browser and Gradio from loading anything from other machines."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_closed(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        if scope["type"] == "http" and scope["path"].lower().startswith(FETCHING):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        await self._app(scope, receive, send_closed)
