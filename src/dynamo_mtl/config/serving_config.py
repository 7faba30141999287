"""Settings of the server, most of them limits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class WiresConfig(BaseModel):
    """Which interfaces of other servers are offered."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    systemone: bool = True
    """``/v1/systemone`` and ``/v1/systemone/batch``: typed questions about a text."""
    openai: bool = True
    """``/v1/decisions`` and ``/v1/models``, in OpenAI's forms."""
    labels: bool = True
    """``/predict`` of text-embeddings-inference, and ``/classify`` of vLLM."""


class FeedbackConfig(BaseModel):
    """Whether clients may say which task is right, and what is kept of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str | None = None
    """File that ends with ``.jsonl``, to which ``POST /v1/feedback`` adds, for ``dynamo adapt-router``; without a file
    there is no such route."""
    texts: bool = False
    """Whether the texts themselves are kept. If not, only the numbers are that the router reads of them."""
    max_rows: int = Field(default=10_000, ge=1)
    """Rows of the file; further feedback is refused."""

    @field_validator("file")
    @classmethod
    def _is_lines(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith(".jsonl"):
            raise ValueError("the name should end with .jsonl, since that is what it holds")
        return path


class ServingConfig(BaseModel):
    """How a model is served. The key that clients must send comes from the environment, never from a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 chooses a free one."""
    model_name: str = Field(default="dynamo", min_length=1, max_length=100)
    """Name of the model for clients of other interfaces."""
    wires: WiresConfig = WiresConfig()
    reload: bool = False
    """Whether ``POST /v1/reload`` loads the newest version of the checkpoint, for which a key is needed. SIGHUP always
    does."""
    feedback: FeedbackConfig = FeedbackConfig()
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of a forward pass; PyTorch's own choice if not given. Two processes that share cores stall each
    other."""

    token_budget: int = Field(default=8192, ge=1)
    """Most source tokens in one forward pass."""
    max_wait_ms: float = Field(default=1.0, ge=0)
    """How long an idle engine waits for more inputs to share a pass with the first one."""
    max_writing: int = Field(default=64, ge=1)
    """Maximum number of answers that are generated at the same time; further inputs wait."""

    max_requests: int = Field(default=256, ge=1)
    """Maximum number of inputs that wait or are being answered. Beyond it, clients are asked to come back later."""
    max_queued_tokens: int = Field(default=65536, ge=1)
    """Maximum number of source tokens in all inputs that wait or are being answered."""
    max_routing: int = Field(default=16, ge=1)
    """Maximum number of requests for routes alone that are handled at the same time."""
    deadline_seconds: float = Field(default=30.0, gt=0)
    """Time limit for an answer; one that takes longer is abandoned."""
    header_seconds: float = Field(default=10.0, gt=0)
    """A connection is closed if no complete request header arrives within this time."""
    keep_alive_seconds: int = Field(default=30, ge=1)
    """An idle connection is closed after this time. It should be longer than the same setting of a proxy in front."""
    root_path: str = ""
    """Path under which a proxy offers the server, such as ``/dynamo``, if the proxy removes it from the requests that
    it passes on."""
    cors_origins: list[str] = Field(default_factory=list)
    """Other sites whose pages may send requests from scripts, such as ``https://shop.example``; ``*`` for all."""
    forwarded_allow_ips: str = "127.0.0.1"
    """Proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` headers are trusted, separated by commas."""
    body_seconds: float = Field(default=10.0, gt=0)
    """Time limit for the body of a request to arrive."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long the server may take to finish accepted requests once it is asked to stop."""

    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """Maximum size of the body of a request."""
    max_characters: int = Field(default=20_000, ge=1)
    """Maximum length of an input, including its context and instruction."""
    max_items: int = Field(default=64, ge=1)
    """Maximum number of inputs in one request."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Largest ``max_new_tokens`` that a client may ask for."""
    max_beams: int = Field(default=8, ge=1)
    """Largest ``num_beams`` that a client may ask for."""
