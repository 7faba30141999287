"""Settings of training, under the names that users know from other trainers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamo_mtl.config.system_config import SystemConfig


class RouterPhaseConfig(BaseModel):
    """Phase 2: warm-up on cached features, then the whole objective through the mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    examples_per_task: int = Field(default=1000, ge=1)
    """Training texts of each task whose trunk features are computed once, bare, instructed and crossed."""
    tokens_per_task: int = Field(default=1_000_000, ge=1)
    """No further text of a task is read once its inputs have that many tokens: long texts are costly."""
    feature_epochs: int = Field(default=15, ge=1)
    """Passes over the cached features; they take seconds."""
    feature_batch_size: int = Field(default=64, ge=1)
    """Features of one update of the warm-up."""
    novelty_examples: int = Field(default=800, ge=1)
    """Training texts of each task that say what is known: inputs unlike them are rejected."""
    memory_examples: int = Field(default=300, ge=1)
    """Inputs of each task whose features stay in the checkpoint, so that a task can be added without the data."""
    mixture_steps: int = Field(default=50, ge=0)
    """Steps of the whole objective through the mixture of frozen adapters."""


class JointPhaseConfig(BaseModel):
    """Phase 3: router, adapters and heads together, easy examples first."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_steps: int = Field(default=0, ge=0)
    """Updates; 0 leaves the phase out, and the final model is that of phase 2: on real data the phase did not help."""
    examples_per_task: int = Field(default=2000, ge=1)
    """Training examples of each task that are ranked by their loss and drawn from."""
    lr_factor: float = Field(default=0.2, gt=0)
    """Learning rates of this phase relative to those of the earlier ones."""
    initial_competence: float = Field(default=0.3, gt=0, le=1)
    """Share of the easiest examples that the phase starts with."""
    curriculum_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the phase after which all examples are in use."""


class TrainingConfig(BaseModel):
    """How a model is trained. ``batch_size`` counts examples per update, whatever the micro-batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of all that is drawn: parameters, order, dropout, samples."""
    num_epochs: float = Field(default=10, gt=0)
    """Passes over a task's training data in phase 1; ``max_steps`` cuts it short."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most updates of phase 1 for each task; ``num_epochs`` alone decides if not given."""
    step_share: float = Field(default=1.0, gt=0, le=1)
    """Share of phase 1's updates that are made, under a schedule of that length: less than 1 is a trial."""
    batch_size: int = Field(default=16, ge=1)
    """Examples of one update, over all processes and micro-batches."""
    token_budget: int = Field(default=8192, ge=1)
    """Most tokens in one forward pass: a larger batch is split into micro-batches and accumulated."""
    lora_lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate of adapters, reached after the warm-up and falling by ``lr_schedule``."""
    head_lr: float = Field(default=1e-3, gt=0)
    """The same of heads and own target vocabularies."""
    router_lr: float = Field(default=1e-3, gt=0)
    """The same of the router."""
    backbone_lr: float = Field(default=1e-4, gt=0)
    """Of full fine-tuning, where ``model.freeze_backbone`` is false."""
    loraplus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, on adapters, the router and the matrices of a backbone that is trained; heads have none."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates fall after the warm-up: along a cosine or a line down to 0, or not at all."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the updates in which the learning rate rises."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """A longer gradient is shortened to this length."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of a CPU. If neither this nor ``OMP_NUM_THREADS`` is given, as many as there are cores that nobody else
    works on when the run starts; a resumed run takes as many as before."""
    compile: bool = False
    """Compile the encoder's layers with ``torch.compile``."""

    task_weight: float = Field(default=1.0, ge=0)
    """Of the tasks' own losses, where the router's weights mix the adapters."""
    routing_weight: float = Field(default=1.0, ge=0)
    """Of the cross entropy with the known task."""
    smoothing_weight: float = Field(default=0.0, ge=0)
    """Of the cross entropy with no task in particular: beside a ``routing_weight`` of 1,
    0.11 is a label smoothing of 0.1."""
    load_balance_weight: float = Field(default=0.0, ge=0)
    """Of the divergence between the tasks of a batch and where it is sent; no gain was measured."""
    efficiency_weight: float = Field(default=0.0, ge=0)
    """Of the effective number of adapters of an input; no gain was measured."""
    consistency_weight: float = Field(default=0.1, ge=0)
    """Of the divergence between two views of an input: two dropout masks, two instructions."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Of the entropy of the routing weights."""
    temperature_weight: float = Field(default=0.1, ge=0)
    """Of the distance of a learned temperature from its schedule."""
    z_loss_weight: float = Field(default=0.0, ge=0)
    """Of the size of the router's logits; no gain was measured."""
    term_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weights of registered terms of one's own, by name."""

    eval_every: int = Field(default=200, ge=1)
    """Most steps between validations; every task of phase 1 is validated at least ten times."""
    eval_examples: int = Field(default=256, ge=1)
    """Validation examples of each task that a validation reads."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite: end the run before any parameter changes, or leave the step out
    and count it."""
    load_best_model_at_end: bool = True
    """End phase 1 in its best validated state rather than its last one. The later phases always do."""
    save_every: int = Field(default=500, ge=1)
    """Steps between saved states of the run, from which it can go on after it was killed."""
    keep_states: int = Field(default=2, ge=1)
    """Newest states that are kept while a run goes on; none is left when it ends."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after that many validations without a better score."""
    log_every: int = Field(default=20, ge=1)
    """Updates between two lines on the console and in ``metrics.jsonl``."""
    router: RouterPhaseConfig = RouterPhaseConfig()
    joint: JointPhaseConfig = JointPhaseConfig()


class PipelineConfig(SystemConfig):
    """A system and how it is trained."""

    training: TrainingConfig = TrainingConfig()
    log_dir: str = "./logs"
    """Where ``train.log``, ``metrics.jsonl`` and trackers write."""
    checkpoint_dir: str = "./checkpoints"
    """Where a checkpoint of each phase goes, and the states of a run while it goes on."""
    use_wandb: bool = False
    """Short for ``trackers: [wandb]``."""
    wandb_project: str = "dynamo"
    """Name of the project for every tracker."""
    wandb_tags: list[str] = Field(default_factory=list)
    """Tags of the run at W&B."""
    trackers: list[Literal["wandb", "tensorboard", "mlflow", "trackio"]] = Field(default_factory=list)
    """Where values, routing heat maps and sample answers are logged beside ``log_dir``; ``use_wandb`` adds wandb."""

    @property
    def chosen_trackers(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.trackers, *(["wandb"] if self.use_wandb else [])]))
