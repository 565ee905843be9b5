"""`mbconv serve`: pictures over HTTP."""

import click

from mbconv.cli.base import Duration, Size, main, offline, trust


@main.command()
@click.argument("model")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in."
)
@click.option(
    "--allow-urls", is_flag=True, help="Let clients name URLs, which this machine fetches."
)
@click.option(
    "--max-upload", type=Size(), default="16MB", show_default=True, help="Of one picture."
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    default=50,
    show_default=True,
    help="Of one picture.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Pictures that may wait; more are told to come again.",
)
@click.option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="For an upload to arrive, and for its answer.",
)
@trust
@offline
def serve(
    model: str,
    port: int,
    host: str,
    allow_urls: bool,
    max_upload: int,
    max_megapixels: float,
    queue: int,
    timeout: float,
    trust: bool,
) -> None:  # fmt: skip
    """Serve MODEL to browsers (a page) and programs (an API) until Ctrl-C.

    MODEL may also be an artifact of mbconv export: .onnx, .xml, .pte or .pt2.

    \b
    mbconv serve runs/clothing
    curl -F files=@hat.jpg http://127.0.0.1:8000/predict
    """
    from mbconv.serve.limits import Limits
    from mbconv.serve.run import serve

    pixels = max(1, int(max_megapixels * 1e6))
    limits = Limits(upload=max_upload, pixels=pixels, queue=queue, seconds=timeout)
    serve(
        model, host=host, port=port, limits=limits, allow_urls=allow_urls, trust=trust,
        say=click.echo,
    )  # fmt: skip
