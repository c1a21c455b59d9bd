"""What the server has done, in the text format that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
OUTCOMES = ("ok", "refused", "failed", "busy", "stalled", "oversized", "idle")


class Metrics:
    """Counters of requests. Not for several threads: the event loop's alone."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.connections = 0
        self._below = [0] * (len(LATENCY_S) + 1)
        self._seconds = 0.0

    def count(self, outcome: str, seconds: float) -> None:
        """Count a request and how long it took, or a client that was closed for what it sent, or did not.

        Args:
            outcome: ok, refused (the client's fault), failed (the policy's), busy, stalled, oversized or idle.
        """
        self.outcomes[outcome] += 1
        if outcome == "ok":
            self._below[bisect_left(LATENCY_S, seconds)] += 1
            self._seconds += seconds

    def text(self, gauges: Mapping[str, int]) -> str:
        """Return all figures, with these of the moment among them."""
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, int]) -> Iterator[str]:
        yield "# TYPE vla_flow_requests_total counter"
        yield from (f'vla_flow_requests_total{{outcome="{name}"}} {self.outcomes[name]}' for name in OUTCOMES)
        yield "# TYPE vla_flow_connections_total counter"
        yield f"vla_flow_connections_total {self.connections}"
        yield "# TYPE vla_flow_request_seconds histogram"
        total = 0
        for bound, n in zip((*LATENCY_S, "+Inf"), self._below, strict=True):
            total += n
            yield f'vla_flow_request_seconds_bucket{{le="{bound}"}} {total}'
        yield f"vla_flow_request_seconds_sum {self._seconds:.6f}"
        yield f"vla_flow_request_seconds_count {total}"
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            yield f"# TYPE vla_flow_{name} {kind}"
            yield f"vla_flow_{name} {value}"
