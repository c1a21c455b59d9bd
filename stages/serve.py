"""Serve a policy to robots and simulators, over openpi's websocket protocol.

    python -m stages.serve                                        # runs/flow/policy on ws://127.0.0.1:8000
    python -m stages.serve --policy hf://user/name --port 9000
    VLA_FLOW_TOKEN=SECRET python -m stages.serve --host 0.0.0.0   # openssl rand -hex 16 makes one

Clients of openpi (openpi-client) need no change. GET /healthz answers OK, GET /metrics in Prometheus's format. SIGTERM
and Ctrl-C stop it when what was asked is answered. See docs/deploy.md.
"""

import asyncio
import logging
import math
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from stages import cli

if TYPE_CHECKING:
    from pipeline.server.websocket import PolicyServer

log = logging.getLogger(__name__)
PORTS = 65535  # is the last one


def main(argv: list[str] | None = None) -> None:
    """Load the policy and serve it until a signal comes."""
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("--policy", default="runs/flow/policy", help="bundle, or hf://user/name (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 is any free one (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1... (default: cuda if there is one)")
    parser.add_argument("--encoder-weights", metavar="FILE", help="of the encoder, where they are no tag of open_clip")
    parser.add_argument("--max-batch", type=positive, default=32, help="computed at once (default: %(default)s)")
    parser.add_argument(
        "--max-wait-ms", type=milliseconds, default=2.0, help="for others to join (default: %(default)s)"
    )
    parser.add_argument("--max-clients", type=positive, default=128, help="connected at a time (default: %(default)s)")
    parser.add_argument("--max-message-mib", type=positive, default=16, help="of one request (default: %(default)s)")
    args = parser.parse_args(argv)
    from pipeline.encode.clip import pick_device, require_device  # torch and open_clip take seconds to import
    from pipeline.inference.encoder import make_encoder
    from pipeline.inference.policy import Policy
    from pipeline.inference.source import local_bundle
    from pipeline.policy.bundle import load
    from pipeline.server.batching import Batching
    from pipeline.server.websocket import TOKEN, Limits, PolicyServer, require_token

    token = os.environ.get(TOKEN) or None
    require_token(args.host, token)
    device = args.device or pick_device()
    require_device(device)
    bundle = load(local_bundle(args.policy), device)
    policy = Policy(bundle, make_encoder(bundle.spec, device, args.encoder_weights))
    limits = Limits(message_bytes=args.max_message_mib << 20, clients=args.max_clients)
    batching = Batching(largest=args.max_batch, wait_s=args.max_wait_ms / 1e3, queue=args.max_clients)
    # What two policies of one architecture differ in, for clients who compare.
    about = {
        "weights_sha256": bundle.digest,
        "sim": policy.spec.data.get("sim", {}),
        "sampling_steps": policy.spec.architecture.sampling_steps,
        "precision": policy.encoder.precision,
        "device": policy.device.type,
    }
    server = PolicyServer(policy, limits, batching, token, about)

    def started(port: int) -> None:
        log.info("%s on %s at ws://%s:%d", args.policy, policy.device, args.host, port)

    asyncio.run(until_signal(server, args.host, args.port, started))
    log.info("stopped: %s", ", ".join(f"{n} {what}" for what, n in server.metrics.outcomes.items()) or "no requests")


def positive(text: str) -> int:
    """Return a number of at least 1. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def milliseconds(text: str) -> float:
    """Return a finite number from 0. Raises ValueError."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def port(text: str) -> int:
    """Return a number of a port. Raises ValueError."""
    if not 0 <= (number := int(text)) <= PORTS:
        raise ValueError(text)
    return number


async def until_signal(server: "PolicyServer", host: str, port: int, started: Callable[[int], None]) -> None:
    """Run the server until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await server.run(host, port, stop, started)


if __name__ == "__main__":
    cli.run(main)
