"""What a training leaves behind: its history, and a checkpoint from which it goes on."""

from __future__ import annotations

import io
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from resnotes.errors import RunError
from resnotes.files import sealed, unsealed, write_atomic

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of a history. Errors in percent, losses in nats per image or pixel; all at the end of the epoch.

    `train_loss` and `running_error` are means over the epoch's batches, on augmented images, while the
    weights changed and BN used batch statistics. The other columns are clean: eval mode, no augmentation.
    """

    epoch: int
    iteration: int
    lr: float
    train_loss: float
    running_error: float
    clean_loss: float
    clean_error: float
    test_loss: float
    test_error: float
    seconds: float  # wall time of the epoch, its evaluation included
    clean_iou: float | None = None  # mean intersection over union, in segmentation
    test_iou: float | None = None


@dataclass
class Training:
    """What `resnotes.training.loop.train` returns: the history and the conditions it was made under."""

    device: str
    precision: str
    threads: int
    resumed: int = 0  # how often it went on from a checkpoint
    history: list[Epoch] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """One row per epoch, the columns of `Epoch`; without those that do not apply to the task."""
        frame = pd.DataFrame([asdict(row) for row in self.history], columns=list(Epoch.__annotations__))
        missing = [column for column in ("clean_iou", "test_iou") if frame[column].isna().all()]
        return frame.drop(columns=missing)


@dataclass
class Checkpoint:
    """State after an epoch, in a sealed file that loads without unpickling code.

    PyTorch compares no checksum when it loads: a flipped bit would be a weight like any other.
    """

    path: Path | None  # None keeps nothing
    fingerprint: str  # of the data: a run does not go on with other data than it began with
    saved: float = field(default_factory=time.monotonic)

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, training: Training, *, every: float) -> None:
        """Replace the file in one step, if it is as many seconds old."""
        if self.path is None or time.monotonic() - self.saved < every:
            return
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": [asdict(row) for row in training.history],
            "resumed": training.resumed,
            "fingerprint": self.fingerprint,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, sealed(buffer.getvalue()))
        self.saved = time.monotonic()

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer, training: Training) -> None:
        """Bring all three to the state in the file, if there is one that is whole.

        Raises:
            RunError: it is no checkpoint, or one of a training on other data.
        """
        if self.path is None or not self.path.exists():
            return
        if (content := unsealed(self.path.read_bytes())) is None:
            _log.warning("%s is damaged; the run is trained from its start", self.path)
            return
        try:
            device = next(network.parameters()).device
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                raise RunError(
                    f"{self.path} belongs to data with fingerprint {state['fingerprint']}, but that at hand has"
                    f" {self.fingerprint}; delete it to train the run on this data"
                )
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            training.history = [Epoch(**row) for row in state["history"]]
            training.resumed = state["resumed"] + 1
        except RunError:
            raise
        except Exception as error:  # whole, but not by us, or by another version: anything can be wrong with it
            # PyTorch's own words would advise to load it without the protection against foreign code.
            raise RunError(
                f"{self.path} is no checkpoint ({type(error).__name__}); delete it to train the run from its start"
            ) from error
