"""``hub_release serve``: a package as a server."""

from __future__ import annotations

from typing import Annotated

import typer

from hub_release.commands.console import Backend, Package, Quantization, Threads, errors


def serve(
    package: Package,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    backend: Backend = "torch",
    quantization: Quantization = None,
    threads: Threads = None,
    batch: Annotated[
        int, typer.Option(min=1, help="The most texts of a batch: requests of the same moment share one.")
    ] = 64,
    waiting: Annotated[
        int, typer.Option(min=1, help="The most texts that wait; requests beyond get 429 with Retry-After.")
    ] = 1_024,
    texts: Annotated[int, typer.Option(min=1, help="The most texts of a request.")] = 128,
    characters: Annotated[int, typer.Option(min=1, help="The most characters of a text.")] = 100_000,
    body_bytes: Annotated[
        int, typer.Option("--body_bytes", min=1, help="The most bytes of a request's body.")
    ] = 1_000_000,
) -> None:
    """Serve a package over HTTP. Control+C or SIGTERM stops it; what has begun is answered.

    `/` speaks the Inference API's text classification: `huggingface_hub.InferenceClient(model="http://127.0.0.1:8080")`
    works with it. `/predict` speaks that of text-embeddings-inference. `/health`, `/info`, `/metrics` (Prometheus) and
    `/docs` (OpenAPI) are there too. No text is logged.

    Example: `hub_release serve goemotions-small`
    """
    with errors(as_json=False):
        from hub_release.package import require_folder
        from modeling.infer import import_optional

        require_folder(package)
        for module in ("fastapi", "uvicorn", "prometheus_client"):
            import_optional(module, "'goemotions-mistral[serve]'")
        from hub_release.serving.application import Limits
        from hub_release.serving.server import listen, load_model, serve as serve_model

        limits = Limits(body_bytes=body_bytes, texts=texts, characters=characters, batch=batch, waiting=waiting)
        listening = listen(host, port)
        model = load_model(package, backend, quantization, threads)
        typer.echo(f"{model.name}, computed {model.about}, answers at http://{host}:{port}")
        try:
            serve_model(model, limits, listening)
        except KeyboardInterrupt:  # uvicorn has stopped by now, and raises the signal again
            typer.echo("stopped")
