"""The settings of a training run. The string under each field is its help text."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

# Strict: true is no number, whatever Python says. A whole number is one with a point, too.
Positive = Annotated[FiniteFloat, Field(gt=0, strict=True)]
NotNegative = Annotated[FiniteFloat, Field(ge=0, strict=True)]
Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1, strict=True)]
Count = Annotated[int, Field(ge=1, lt=2**63, strict=True)]


class TrainSettings(BaseModel):
    """Every number that decides the outcome of a run, besides the task, the backbone and the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: Count = 3
    """Passes over the training rows."""
    max_steps: Count | None = None
    """Optimizer steps; replaces `epochs` when given."""
    learning_rate: Positive | None = None
    """Peak learning rate. None: the method's own default (adapters about ten times full fine-tuning's)."""
    head_learning_rate: Positive | None = None
    """The head's own peak. None: `learning_rate`, but at most 5e-3 beside modules: prompts and prefixes want far larger steps than
    a head. A head alone has `learning_rate` as it is."""
    batch_size: Count = 16
    """Rows per batch."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """`adafactor` as in the prompt-tuning paper: external learning rate, no parameter scaling, no momentum."""
    weight_decay: NotNegative | None = None
    """Decoupled weight decay, never on biases and gains. None: 0.01 with adamw, 1e-5 with adafactor (its paper's)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's moment decays. Adafactor has none: beta1 off, beta2 decays as 1 - step**-0.8."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    warmup: Annotated[FiniteFloat, Field(ge=0, le=1, strict=True)] = 0.1
    """Share of all steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: down to 0 at the end, or constant."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    accumulate: Count = 1
    """Batches per optimizer step. The gradient is that of one large batch, also where batches are unequal."""
    evaluate_every: Count | None = None
    """Steps between evaluations. None: after each epoch. There is always one at the end."""
    metric: str | None = None
    """Validation metric that names the best weights. None: accuracy, micro_f1, pearson, f1 or loss, by the
    kind of task; exact_match for text-to-text."""
    patience: Count | None = None
    """Stop after so many evaluations in a row without a gain. None: never."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seed of dropout and of the order of the rows. The same seed gives the same weights, bit for bit, on a CPU."""
    checkpoint_every: Count = 200
    """Steps between checkpoints. There is also one after each evaluation."""
    backbone_dropout: bool | None = None
    """Dropout inside the backbone while training. None: only where the method trains the backbone's own weights; a frozen one gains
    nothing by it (results/quiet_trunk.md), and without it a step is cheaper."""
    reuse_gib: NotNegative = 1.0
    """Memory for what the layers under a task's lowest module put out: computed once for each row, where it fits, instead of in
    every epoch (head alone, top layers, left-out bottom layers). 0: never."""
    max_length: Count | None = None
    """Longest text, in tokens; for generation with a decoder, text and target together. None: what the backbone allows."""
    target_length: Annotated[int, Field(ge=2, strict=True)] | None = None
    """generation: longest target, in tokens, its end-of-sequence token included. None: that of the longest legal output, or
    128 and at most half of max_length."""
    batches: Literal["auto", "like", "balanced", "shuffled"] = "auto"
    """Which rows share a batch: of like length (less padding), of lengths that add up to the same in each (packed rows, in one
    shape), or any. auto: balanced on a GPU, like on a CPU."""

    def head_share(self, *, alone: bool) -> float:
        """The head's learning rate as a share of the others'. alone: whether there are no others."""
        if self.learning_rate is None:
            return 1.0
        own = self.head_learning_rate or (self.learning_rate if alone else min(self.learning_rate, 5e-3))
        return own / self.learning_rate

    def decay(self) -> float:
        """The weight decay, with the optimizer's default filled in."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.01 if self.optimizer == "adamw" else 1e-5
