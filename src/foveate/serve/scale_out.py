"""The server as a deployment of Ray Serve: replicas over machines, more as requests wait; needs the extra `ray`.

Ray starts, watches and replaces the replicas and hands requests to them; nothing of that is done here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from foveate.serve.settings import ServeError, Settings


def deployment(
    model: str,
    settings: Settings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    replicas: tuple[int, int] = (1, 1),
    gpus: float = 0.0,
    cpus: float = 1.0,
) -> Any:
    """Return the application for `ray.serve.run`.

    Each replica has the model, a queue and counters of its own; the limits in `settings` hold for each.

    Parameters
    ----------
    model, device, dtype
        As for `foveate.measure.loading.load_model`.
    settings
        The operator's.
    replicas
        Fewest and most; between them Ray starts one more where over `max_batch` requests a replica wait or run.
    gpus, cpus
        Of each replica, as Ray counts them.

    Raises
    ------
    ServeError
        The numbers of replicas make no sense.
    """
    from ray import serve

    low, high = replicas
    if not 1 <= low <= high:
        raise ServeError(f"replicas are two numbers of at least 1, the second not smaller, got {low} and {high}")

    class Replica:
        """A server in a process of its own."""

        def __init__(self) -> None:
            from foveate.measure.loading import load_model
            from foveate.serve.service import Service

            self.service = Service(load_model(model, device, dtype), settings)

        def __serve_build_asgi_app__(self) -> Any:
            from foveate.serve.app import build_app

            return build_app(self.service)

        def check_health(self) -> None:
            """Let Ray replace a replica whose device answers nothing any more."""
            if self.service.worker.broken:
                raise RuntimeError("the accelerator has failed")

    scaling = {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": settings.max_batch}
    made = serve.deployment(
        serve.ingress()(Replica),
        name="foveate",
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        max_ongoing_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.seconds,
        **({"num_replicas": low} if low == high else {"autoscaling_config": scaling}),
    )
    return made.bind()


def from_yaml(args: dict[str, Any]) -> Any:
    """Return the application that a configuration of Ray Serve describes, see deploy/ray.yaml.

    Parameters
    ----------
    args
        `model`, the other parameters of `deployment`, and any of `Settings`; lists stand for tuples.

    Raises
    ------
    ServeError
        One of them is unknown.
    """
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
    model = str(given.pop("model", "tiny"))
    placed: dict[str, Any] = {
        name: given.pop(name) for name in ("device", "dtype", "replicas", "gpus", "cpus") if name in given
    }
    if isinstance(given.get("options"), dict):
        given["options"] = tuple(given["options"].items())
    known = {one.name for one in dataclasses.fields(Settings)}
    if unknown := sorted(set(given) - known):
        raise ServeError(f"no settings {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return deployment(model, Settings(**{"served_name": model, **given}), **placed)


def run(application: Any, host: str, port: int, seconds: float) -> None:
    """Serve until interrupted, in the Ray cluster of RAY_ADDRESS, or in one that is started here.

    Parameters
    ----------
    application
        What `deployment` returned.
    host, port
        Where each machine of the cluster listens.
    seconds
        Time limit of a request.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": seconds + 5})
    serve.run(application, name="foveate", blocking=True)
