"""What Prometheus reads at /metrics."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "mbconv_requests", "Requests answered, by status.", ["status"], registry=self.registry
        )
        pictures = Counter(
            "mbconv_pictures", "Pictures by what became of them.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.answered, self.unreadable = pictures.labels("answered"), pictures.labels("unreadable")
        self.seconds = Histogram(
            "mbconv_picture_seconds", "From a picture's arrival to its answer.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "mbconv_batch_pictures", "Pictures computed together.",
            buckets=(1, 2, 4, 8, 16, 32), registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "mbconv_pictures_waiting", "Pictures taken and not answered yet.",
            registry=self.registry,
        )  # fmt: skip
        self.held = Gauge(
            "mbconv_upload_bytes", "Bytes of uploads in memory.", registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
