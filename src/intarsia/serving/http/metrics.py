"""Numbers: for Prometheus (`/metrics`), and for the page (`/v1/load`).

The engine counts what it does with plain ints, which are read when somebody asks. What only this layer sees is counted
here: answers by route and status, how long they took, and requests by task.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from intarsia.serving.counts import SECONDS, Histogram

MOST_TASKS = 50
"""Tasks with a label of their own; later ones are counted as `other`: a thousand tasks must not make a thousand series."""
QUESTIONS = ("/v1/classify", "/v1/tag", "/v1/completions", "/v1/chat/completions", "/v2/models/{task}/infer")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
WINDOW_SECONDS = 60.0


class Meters:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = prometheus.Counter(
            "intarsia_http_requests",
            "Answers, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = prometheus.Histogram(
            "intarsia_http_request_seconds",
            "Time from the request's head to the answer's end.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tasks = prometheus.Counter(
            "intarsia_task_requests",
            "Questions by task; 'other' beyond the first 50.",
            ("task",),
            registry=self.registry,
        )
        self._named: set[str] = set()
        self._recent: deque[tuple[float, float]] = deque(maxlen=4096)
        self._started = time.monotonic()
        self._questions = 0
        # Finding a child by its labels takes longer than counting.
        self._counter = cache(lambda method, route, status: self._answers.labels(method, route, str(status)))
        self._timer = cache(self._seconds.labels)
        self._asked = cache(self._tasks.labels)

    def asked(self, task: str | None) -> None:
        """A question that the engine took. task None: for the plain backbone."""
        name = "" if task is None else task
        if name not in self._named and len(self._named) < MOST_TASKS:
            self._named.add(name)
        self._asked(name if name in self._named else "other").inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer has been sent; status 0: the client left before."""
        self._counter(method if method in METHODS else "other", route, status).inc()
        self._timer(route).observe(seconds)
        if route in QUESTIONS:
            self._questions += 1
            if 200 <= status < 300:
                self._recent.append((time.monotonic(), seconds))

    def load(self, gauges: Mapping[str, Any]) -> dict[str, Any]:
        """The page's numbers. gauges: the engine's."""
        since = time.monotonic() - WINDOW_SECONDS
        recent = sorted(seconds for when, seconds in self._recent if when >= since)
        return {
            "queue": gauges["queue"],
            "running": gauges["running"],
            "resident": gauges["resident"],
            "paged": gauges["paged"],
            "requests_total": self._questions,
            "tokens_total": gauges["tokens_in"] + gauges["tokens_out"],
            "latency_ms": {f"p{share}": _percentile(recent, share) for share in (50, 95, 99)},
            "uptime_s": round(time.monotonic() - self._started, 1),
        }

    def exposition(self, gauges: Mapping[str, Any]) -> tuple[bytes, str]:
        """Prometheus' text and its media type."""
        families = CollectorRegistry(auto_describe=False)
        families.register(_Engine(gauges))
        return generate_latest(self.registry) + generate_latest(families), CONTENT_TYPE_LATEST


# gauge of the engine: (name, what it is)
GAUGES = {
    "queue": ("intarsia_queue_requests", "Requests that wait."),
    "running": ("intarsia_running_requests", "Texts that are being written."),
    "resident": ("intarsia_tasks_resident", "Tasks whose tensors are on the device."),
    "paged": ("intarsia_tasks_paged", "Tasks whose tensors are in host memory."),
    "bytes_device": ("intarsia_task_bytes_device", "Bytes of task tensors on the device."),
    "bytes_host": ("intarsia_task_bytes_host", "Bytes of task tensors in host memory."),
}


class _Engine(Collector):
    """The engine's own numbers at one moment."""

    def __init__(self, gauges: Mapping[str, Any]) -> None:
        self.gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Once for each time that somebody asks."""
        gauges = self.gauges
        for key, (name, what) in GAUGES.items():
            yield GaugeMetricFamily(name, what, value=gauges[key])
        tokens = CounterMetricFamily("intarsia_tokens", "Tokens read and written.", labels=["direction"])
        tokens.add_metric(["in"], gauges["tokens_in"])
        tokens.add_metric(["out"], gauges["tokens_out"])
        yield tokens
        requests = CounterMetricFamily("intarsia_requests", "Requests by kind and end.", labels=["kind", "outcome"])
        for (kind, outcome), count in gauges["requests"].items():
            requests.add_metric([kind, outcome], count)
        yield requests
        yield _histogram("intarsia_request_seconds", "From the queue to the last event.", gauges["seconds"])
        yield _histogram("intarsia_batch_rows", "Rows of one forward pass of classification.", gauges["rows"])


def _histogram(name: str, what: str, counted: Histogram) -> HistogramMetricFamily:
    total, buckets = 0, []
    for bound, count in zip((*counted.bounds, "+Inf"), list(counted.counts), strict=True):
        total += count
        buckets.append((str(bound), total))
    return HistogramMetricFamily(name, what, buckets=buckets, sum_value=counted.sum)


def _percentile(ordered: list[float], share: int) -> float | None:
    """Milliseconds; the smallest value that `share` percent do not exceed."""
    if not ordered:
        return None
    return round(1000 * ordered[max(0, -(-share * len(ordered) // 100) - 1)], 3)
