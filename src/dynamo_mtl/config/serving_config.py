"""Settings of the server, most of them limits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """How a model is served. The key that clients must send is in the environment, never in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of a forward pass; PyTorch's own choice if not given. Two processes that share cores stall each other."""

    token_budget: int = Field(default=8192, ge=1)
    """Most source tokens in one forward pass."""
    max_wait_ms: float = Field(default=1.0, ge=0)
    """How long an idle engine waits for more inputs to share a pass with the first one."""
    max_writing: int = Field(default=64, ge=1)
    """Answers that are written at once; further inputs wait."""

    max_requests: int = Field(default=256, ge=1)
    """Inputs that wait or are worked on; beyond them, clients are asked to come back later."""
    max_queued_tokens: int = Field(default=65536, ge=1)
    """Source tokens of all inputs that wait or are worked on."""
    max_routing: int = Field(default=16, ge=1)
    """Requests for routes alone that are worked on at once."""
    deadline_seconds: float = Field(default=30.0, gt=0)
    """An answer that takes longer is given up."""
    header_seconds: float = Field(default=10.0, gt=0)
    """A connection on which no whole head of a request arrives for that long is closed."""
    keep_alive_seconds: int = Field(default=30, ge=1)
    """An idle connection is closed after that long; longer than the same setting of a proxy in front."""
    root_path: str = ""
    """The path under which a proxy offers the server, such as ``/dynamo``, if it takes that off before it passes
    requests on."""
    cors_origins: list[str] = Field(default_factory=list)
    """Pages of other sites whose scripts may ask, such as ``https://shop.example``; ``*`` for all."""
    forwarded_allow_ips: str = "127.0.0.1"
    """Proxies whose ``X-Forwarded-For`` and ``-Proto`` are believed, separated by commas."""
    body_seconds: float = Field(default=10.0, gt=0)
    """A request whose body takes longer to arrive is given up."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long the server goes on with what it accepted, once it is asked to stop."""

    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """Of one request."""
    max_characters: int = Field(default=20_000, ge=1)
    """Of one input, its context and instruction included."""
    max_items: int = Field(default=64, ge=1)
    """Inputs in one request."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Largest ``max_new_tokens`` that a client may ask for."""
    max_beams: int = Field(default=8, ge=1)
    """Largest ``num_beams`` that a client may ask for."""
