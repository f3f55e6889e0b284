"""The page itself: Gradio's components on the answers, and a server that lets nothing go to other machines."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import fastapi
import gradio
import uvicorn
from starlette.datastructures import MutableHeaders

from foveate.measure.eval.suites import Example, load_suite
from foveate.measure.loading import TINY
from foveate.pruners.base import depth_of
from foveate.pruners.registry import METHODS, SHIPPED
from foveate.pruners.spec import has_own_budget
from foveate.serve.page.answers import LIMITS, LONGEST, USUAL, PageError, SideBySide
from foveate.serve.page.html import CSS, OWN, shown

TASKS = ("colour", "read", "count", "spell", "colours", "row", "compare", "follow")  # of the examples; half are long
WAITING = 32  # questions that may wait
FINEST = 0.01  # step of the slider
# a browser loads nothing from elsewhere and sends nothing there, whatever Gradio's page asks for
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
STYLE = CSS + (
    ".fv-examples { gap: .4rem; }"
    ".fv-examples button { white-space: normal; text-align: left; justify-content: flex-start; font-weight: 400; }"
    ".fv-examples button img { width: 3rem; height: 3rem; border-radius: 4px; }"
)


class OnlyHere:
    """Middleware that sends `POLICY` along with every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, sending)


@contextlib.contextmanager
def build_app(sides: SideBySide, method: str = "greedyprune", keep: float = USUAL, seed: int = 1) -> Iterator[Any]:
    """Give the page as an ASGI application; what visitors upload is deleted at the end.

    Parameters
    ----------
    sides
        Answers the questions.
    method, keep
        What the page shows at first.
    seed
        Of the examples' scenes.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="foveate-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read whenever a component is made
        try:
            app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
            app.add_middleware(OnlyHere)
            yield gradio.mount_gradio_app(
                app,
                _blocks(sides, method, keep, _examples(seed), Path(folder)),
                path="/",
                footer_links=[],
                run_history=False,
                show_error=False,
                max_file_size=LIMITS.max_image_bytes,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=STYLE,
            )
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def _examples(seed: int) -> list[Example]:
    """Return one scene of the embedded model for each of `TASKS`."""
    found = {one.task: one for one in reversed(load_suite("scenes", 34, seed))}
    return [found[task] for task in TASKS if task in found] or list(found.values())


def _blocks(sides: SideBySide, method: str, keep: float, examples: list[Example], folder: Path) -> gradio.Blocks:
    """Return the page's components, and what happens when."""
    with gradio.Blocks(title="foveate: dense beside pruned", analytics_enabled=False) as blocks:
        gradio.Markdown(_head(sides))
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                image = upload()
                question = gradio.Textbox(label="Question", max_length=LONGEST, lines=1, elem_id="question")
                chosen = gradio.Dropdown(_methods(sides, method), value=method, label="Method", elem_id="method")
                share = gradio.Slider(
                    FINEST, 1.0, value=keep, step=FINEST, label="Keep: share of the visual tokens", elem_id="keep"
                )
                own = gradio.Checkbox(
                    value=has_own_budget(method, {}),
                    visible=has_own_budget(method, {}),
                    label="The method decides how many, not the slider",
                )
                layer = gradio.Dropdown(_layers(sides), value=OWN, label="Cut before decoder layer", elem_id="layer")
                ask = gradio.Button("Answer, dense and pruned", variant="primary", elem_id="ask")
                with gradio.Column(elem_classes="fv-examples"):
                    gradio.Markdown("Examples, on scenes that the embedded model was not trained with:")
                    buttons = [_button(number, one, folder) for number, one in enumerate(examples)]
            with gradio.Column(scale=3, min_width=280):
                result = gradio.HTML(
                    '<div class="fv"><p>Choose an example, or an image and a question.</p></div>',
                    elem_id="result",
                    apply_default_css=False,
                )
        chosen.change(_own_budget, chosen, own, queue=False, api_visibility="private", show_progress="hidden")
        inputs: list[Any] = [image, question, chosen, share, own, layer]
        _on_asking(sides, ask, question, inputs, result, list(zip(buttons, examples, strict=True)))
    blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return blocks


def _on_asking(
    sides: SideBySide, ask: Any, question: Any, inputs: list[Any], result: Any, examples: list[tuple[Any, Example]]
) -> None:
    """Have the button, the enter key and the examples answer."""

    def answer(*values: Any) -> Iterator[str]:
        yield from shown(sides, *values)

    usual = dict(api_visibility="private", show_progress="minimal", concurrency_id="model", scroll_to_output=True)
    for event in (ask.click, question.submit):
        event(answer, inputs, result, **usual)
    for button, one in examples:
        button.click(
            lambda one=one: (one.image, one.question), None, inputs[:2], queue=False, api_visibility="private"
        ).then(answer, inputs, result, **usual)


def _head(sides: SideBySide) -> str:
    name = sides.loaded.name
    if name == TINY:
        millions = sum(weight.numel() for weight in sides.loaded.model.parameters()) / 1e6
        name = f"foveate's embedded model ({millions:.1f} million parameters, trained on rendered scenes)"
    return f"# foveate: dense beside pruned\nOne question, with all and with a share of the visual tokens, to {name}."


def _methods(sides: SideBySide, method: str) -> list[str]:
    shipped = [*SHIPPED] if sides.loaded.name == TINY else []
    return list(dict.fromkeys([method, *METHODS, *shipped]))


def _layers(sides: SideBySide) -> list[str]:
    return [OWN, *map(str, range(depth_of(sides.loaded.model.config)))]


def _own_budget(method: str) -> Any:
    """Return the state of the checkbox: there where the method finds its own budget."""
    own = has_own_budget(method, {})
    return gradio.update(visible=own, value=own)


def upload() -> Any:
    """Return a field for an image that is neither decoded before it was looked at nor fetched from an address.

    Its methods are replaced, as Gradio writes a file beside the source of every subclass of a component.
    """
    field = gradio.Image(
        label="Image", elem_id="image", sources=["upload", "clipboard"], format="png", height=260, buttons=[]
    )
    to_cache = field.async_move_resource_to_block_cache

    async def files_alone(source: Any) -> Any:
        if "://" in str(source):
            raise gradio.Error("an image is a file, not an address")
        return await to_cache(source)

    field.async_move_resource_to_block_cache = files_alone
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def _button(number: int, example: Example, folder: Path) -> Any:
    icon = folder / f"example-{number}.png"
    example.image.resize((96, 96)).save(icon)
    return gradio.Button(example.question, icon=icon, size="md", elem_id=f"example-{number}")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    PageError
        There is no such address here, or its port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PageError(f"cannot listen on {host}, port {port}: {reason}") from error


def serve(app: Any, listening: socket.socket) -> None:
    """Answer requests until the process is interrupted; who looks at the page then does not hold that up."""
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
