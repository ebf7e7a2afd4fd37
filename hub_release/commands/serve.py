"""``hub_release serve``: a package as a server."""

from __future__ import annotations

from typing import Annotated

import typer

from hub_release.commands.console import Backend, Package, Quantization, Threads, errors
from hub_release.serving.online.options import TEXTS_AT_ONCE, Limits


def serve(
    package: Package,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    backend: Backend = "torch",
    quantization: Quantization = None,
    threads: Threads = None,
    batch: Annotated[
        int, typer.Option(min=1, help="The most texts of a batch: requests of the same moment share one.")
    ] = Limits.batch,
    waiting: Annotated[
        int, typer.Option(min=1, help="The most texts that wait; requests beyond get 429 with Retry-After.")
    ] = Limits.waiting,
    texts: Annotated[int, typer.Option(min=1, help="The most texts of a request.")] = Limits.texts,
    characters: Annotated[int, typer.Option(min=1, help="The most characters of a text.")] = Limits.characters,
    body_bytes: Annotated[
        int, typer.Option("--body_bytes", min=1, help="The most bytes of a request's body.")
    ] = Limits.body_bytes,
) -> None:
    """Serve a package over HTTP. Control+C or SIGTERM stops it; what has begun is answered.

    `/` speaks the Inference API's text classification: `huggingface_hub.InferenceClient(model="http://127.0.0.1:8080")`
    works with it. `/predict` speaks that of text-embeddings-inference. `/health`, `/info`, `/metrics` (Prometheus) and
    `/docs` (OpenAPI) are there too. No text is logged.

    Example: `hub_release serve goemotions-small`
    """
    with errors(as_json=False):
        from hub_release.package import require_folder
        from modeling.infer import check_threads, import_optional

        require_folder(package)
        for module in ("fastapi", "uvicorn", "prometheus_client"):
            import_optional(module, "'goemotions-mistral[serve]'")
        from hub_release.serving.load import load_classifier
        from hub_release.serving.online.server import listen, serve as serve_model, to_model
        from hub_release.shipped.requirements import project_version

        limits = Limits(body_bytes=body_bytes, texts=texts, characters=characters, batch=batch, waiting=waiting)
        listening = listen(host, port)
        at_once = check_threads(threads)
        # Several threads use a graph's session, each with a batch of its own; PyTorch shares one batch among its own.
        workers = 1 if backend == "torch" else at_once
        sizes = {"batch_size": TEXTS_AT_ONCE, "threads": at_once // workers}
        classifier = load_classifier(package, backend, quantization=quantization, **sizes)
        model = to_model(classifier, package.resolve().name, project_version(), workers)
        typer.echo(f"{model.name}, computed {model.about}, answers at http://{host}:{port}")
        try:
            serve_model(model, limits, listening)
        except KeyboardInterrupt:  # uvicorn has stopped by now, and raises the signal again
            typer.echo("stopped")
