"""Collect metrics for Prometheus. Every label comes from a fixed set, whatever clients send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    def __init__(self, tasks: Sequence[str], in_flight: Callable[[], float], tokens: Callable[[], float]) -> None:
        """
        Args:
            tasks: names of the tasks.
            in_flight: returns the number of inputs that wait or are processed.
            tokens: returns the number of their source tokens.
        """
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dynamo_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "dynamo_request_seconds", "From the first byte to the last.", ["route"], buckets=LATENCIES,
            registry=self.registry,
        )  # fmt: skip
        self.answers = Counter("dynamo_answers", "Inputs answered, by task.", ["task"], registry=self.registry)
        self.rejected = Counter(
            "dynamo_rejected_inputs", "Inputs that are likely to be of no task.", registry=self.registry
        )
        self.failed = Counter("dynamo_failed_inputs", "Inputs whose forward pass failed.", registry=self.registry)
        self.abandoned = Counter(
            "dynamo_abandoned_inputs", "Inputs whose client went away before the answer.", registry=self.registry
        )
        self.pass_inputs = Histogram(
            "dynamo_pass_inputs", "Inputs that were routed in one pass.", buckets=SIZES, registry=self.registry
        )
        self.writing = Gauge(
            "dynamo_answers_being_written", "Answers in the decoder at the last pass.", registry=self.registry
        )
        Gauge("dynamo_inputs_in_flight", "Inputs that wait or are worked on.", registry=self.registry).set_function(
            in_flight
        )
        Gauge("dynamo_tokens_in_flight", "Their source tokens.", registry=self.registry).set_function(tokens)
        for task in tasks:
            self.answers.labels(task)

    def observe_pass(self, inputs: int, writing: int) -> None:
        """Record the start of a pass: inputs that join it, and answers that are being written."""
        self.pass_inputs.observe(inputs)
        self.writing.set(writing)

    def text(self) -> bytes:
        """Return the metrics in the format that Prometheus reads."""
        return generate_latest(self.registry)
