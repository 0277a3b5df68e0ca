"""What a server has done, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; they may be added to from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "quietstar_requests", "requests answered", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "quietstar_request_seconds",
            "seconds until a request was answered whole",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter("quietstar_tokens", "tokens read, written and thought", ["kind"], registry=self.registry)
        self._in_flight = Gauge("quietstar_requests_in_flight", "requests now", ["state"], registry=self.registry)
        self._batch = Histogram(
            "quietstar_batch_size", "texts that a token was written for at once", buckets=SIZES, registry=self.registry
        )

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has been answered whole, or its client has left."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def tokens(self, kind: str, n: int) -> None:
        """Tokens of a kind: prompt, visible or thought."""
        self._tokens.labels(kind).inc(n)

    def in_flight(self, waiting: int, running: int) -> None:
        """How many requests wait, and how many are worked on."""
        self._in_flight.labels("waiting").set(waiting)
        self._in_flight.labels("running").set(running)

    def step(self, n_texts: int) -> None:
        """A token is written for so many texts at once."""
        self._batch.observe(n_texts)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
