"""`foveate serve`: an OpenAI-compatible server that prunes."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.console import Device, DType, Keep, Method, MethodOptions, console, quiet_loading, say
from foveate.errors import FoveateError


class MissingExtra(FoveateError, ImportError):
    """A package of an extra is not installed."""


def serve(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    method: Method = "greedyprune",
    keep: Keep = None,
    option: MethodOptions = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model for clients; by default as it is given.")] = None,
    other_method: Annotated[
        list[str] | None, typer.Option(help="A further method that requests may ask for; repeatable.")
    ] = None,
    keep_range: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Shares between which requests may choose their budget.")
    ] = None,
    min_visual: Annotated[
        int | None,
        typer.Option(min=0, help="Prompts with fewer visual tokens run dense; by default measured at the start."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences in one batch.")] = 8,
    window_ms: Annotated[float, typer.Option(min=0, help="How long the first request of a batch waits.")] = 5.0,
    join: Annotated[bool, typer.Option("--join", help="Let requests join a batch that is decoding.")] = False,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at once; more get status 429.")] = 128,
    max_per_key: Annotated[int, typer.Option(min=1, help="The same for each API key or address.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.001, help="Time limit of a request.")] = 120.0,
    max_prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, visual ones counted.")] = 8192,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    max_images: Annotated[int, typer.Option(min=1, help="Images and videos of a request.")] = 16,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image or frame.")] = 32.0,
    max_image_mib: Annotated[int, typer.Option(min=1, help="Largest image or video file.")] = 16,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request.")] = 32,
    urls: Annotated[bool, typer.Option("--urls", help="Fetch images from public http(s) addresses.")] = False,
    url_host: Annotated[list[str] | None, typer.Option(help="With --urls: only from this host; repeatable.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File with an API key on each line; also the variable FOVEATE_API_KEYS.")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="As a deployment of Ray Serve, on the cluster of RAY_ADDRESS or a new one.")
    ] = False,
    replicas: Annotated[
        str | None, typer.Option(metavar="FEWEST,MOST", help="With --ray: replicas; more as requests wait.")
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="With --ray: GPUs of a replica.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Serve a model over OpenAI's chat completions, with pruned visual tokens."""
    try:
        import uvicorn

        from foveate.serve.app import build_app

        if on_ray:
            import ray.serve  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"{error.name} is not installed: pip install 'foveate[{'ray' if on_ray else 'serve'}]'"
        ) from None
    from foveate.measure.loading import load_model
    from foveate.pruners.budget import parse_keep
    from foveate.pruners.spec import parse_options
    from foveate.serve.pruning import pruners
    from foveate.serve.service import Service
    from foveate.serve.settings import MIB, ServeError, Settings, check_address, read_keys

    if not on_ray and (replicas is not None or gpus is not None):
        raise ServeError("--replicas and --gpus go with --ray")
    low, high = (None, None) if keep_range is None else _pair("--keep-range", keep_range, "0.1,1.0")
    settings = Settings(
        served_name=name or model,
        method=method,
        keep=None if keep is None else parse_keep(keep),
        options=tuple(parse_options(option or []).items()),
        other_methods=tuple(other_method or ()),
        least_keep=low,
        most_keep=high,
        min_visual=min_visual,
        max_batch=max_batch,
        window=window_ms / 1e3,
        join=join,
        max_requests=max_requests,
        max_per_key=max_per_key,
        seconds=seconds,
        max_prompt=max_prompt,
        max_new_tokens=max_new_tokens,
        max_images=max_images,
        max_pixels=int(max_megapixels * 1e6),
        max_image_bytes=max_image_mib * MIB,
        max_body=max_body_mib * MIB,
        urls=urls,
        url_hosts=tuple(one.lower() for one in url_host or ()),
        keys=read_keys(keys),
    )
    pruners(settings)  # before the model is loaded
    check_address(host, port)
    if on_ray:
        from foveate.serve import scale_out

        fewest, most = _pair("--replicas", replicas or "1,1", "1,4")
        made = scale_out.deployment(
            model, settings, device=device, dtype=dtype, replicas=(int(fewest), int(most)), gpus=gpus or 0.0
        )
        scale_out.run(made, host, port, seconds)
        return
    with console(stderr=True).status(f"loading {model}"):
        quiet_loading()
        service = Service(load_model(model, device, dtype), settings)
    usual = service.choices.choose(None)
    say(f"{settings.served_name}: {usual!r}" if usual is not None else f"{settings.served_name}: dense")
    config = uvicorn.Config(
        build_app(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # the application logs requests itself
        server_header=False,
        timeout_graceful_shutdown=int(seconds) + 1,
        limit_concurrency=4 * max_requests + 64,
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for logger in ("foveate", "uvicorn.error"):
        logging.getLogger(logger).setLevel(logging.INFO)
    uvicorn.Server(config).run()


def _pair(option: str, text: str, example: str) -> tuple[float, float]:
    """Return the two numbers of an option."""
    from foveate.serve.settings import ServeError

    try:
        one, other = (float(word) for word in text.split(","))
    except ValueError:
        raise ServeError(f"{option} is two numbers such as {example}, got {text!r}") from None
    return one, other
