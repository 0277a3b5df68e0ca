"""Metrics of a server, for Prometheus."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""names the folder in which prometheus_client adds up the metrics of several processes"""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Metrics of a server; any thread may update them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "quietstar_requests", "completed requests", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "quietstar_request_seconds",
            "seconds until a response was complete",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "quietstar_tokens", "prompt, visible and thought tokens", ["kind"], registry=self.registry
        )
        self._in_flight = Gauge(
            "quietstar_requests_in_flight",
            "current requests",
            ["state"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._batch = Histogram(
            "quietstar_batch_size", "texts generated in one step", buckets=SIZES, registry=self.registry
        )

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that is complete, or whose client has disconnected."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def tokens(self, kind: str, n: int) -> None:
        """Count tokens of a kind: prompt, visible or thought."""
        self._tokens.labels(kind).inc(n)

    def in_flight(self, waiting: int, running: int) -> None:
        """Set the numbers of waiting and running requests."""
        self._in_flight.labels("waiting").set(waiting)
        self._in_flight.labels("running").set(running)

    def step(self, n_texts: int) -> None:
        """Count a step that generated one token of n_texts texts."""
        self._batch.observe(n_texts)

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format: of all processes, if several serve."""
        registry = self.registry
        if SHARED in os.environ:
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
