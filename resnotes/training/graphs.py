"""A step of training as one CUDA graph.

On images of 32x32 a step is some hundred kernels, many of which end before the next one is launched. Captured once, a
step is launched as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from resnotes import distributed
from resnotes.models import Network
from resnotes.training.classification import ClassificationTask, Draws, batch, drawn

WARMUP = 3  # steps before a capture, in which libraries choose and load their kernels


def can_capture(network: nn.Module, task: ClassificationTask) -> bool:
    """Whether every step of a training does the same, on tensors that stay where they are, on a GPU."""
    same = isinstance(network, Network) and task.recipe.blocks == "all" and not task.recipe.recompute
    return task.device.type == "cuda" and distributed.size() == 1 and same


class Steps:
    """The steps of a training, each a function of tensors that stay where they are: the draws and rates of an epoch.

    Args:
        network: in train mode.
        task: classification, see `can_capture`.
        optimizer: SGD or AdamW; from now on its learning rate is a tensor.
        scales: what the learning rate of each of its groups is multiplied with.
        step: inputs and labels to loss and logits; trains.
    """

    def __init__(
        self,
        network: nn.Module,
        task: ClassificationTask,
        optimizer: torch.optim.Optimizer,
        scales: list[float],
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self._network, self._task, self._optimizer, self._step = network, task, optimizer, step
        self._batch = torch.arange(task.recipe.batch_size, device=task.device)
        self._draws = Draws(*(each.to(task.device) for each in drawn(task.data.sizes[0], task.recipe, seed=0, epoch=0)))
        self._rates = torch.zeros(len(scales), task.batches_per_epoch, device=task.device)
        self._scales = scales
        self._next = torch.zeros(1, dtype=torch.int64, device=task.device)  # step of the epoch
        for group, rates in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rates[0].clone()
        self._graph = self._captured() if task.device.type == "cuda" else None

    def epoch(self, number: int, iterations: range) -> Iterator[Tensor]:
        """Train on the first batches of an epoch; after each, its loss, wrong and labelled images, float64."""
        task = self._task
        draws = drawn(task.data.sizes[0], task.recipe, seed=task.seed, epoch=number)
        for place, new in zip(self._draws, draws, strict=True):
            place.copy_(new)
        rates = torch.tensor([task.recipe.lr_at(iteration) for iteration in iterations], dtype=torch.float64)
        for place, scale in zip(self._rates, self._scales, strict=True):
            place[: len(rates)].copy_(rates * scale)
        self._next.zero_()
        for _ in iterations:
            if self._graph is None:
                self._found = self._one()
            else:
                self._graph.replay()
            yield self._found

    def _one(self) -> Tensor:
        for group, rates in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"].copy_(rates.take(self._next)[0])
        chosen = self._next * len(self._batch) + self._batch
        images, labels = batch(*self._task.training, self._draws, chosen, self._task.recipe.pad)
        loss, logits = self._step(self._task.normalization(images), labels)
        self._next += 1
        found = loss, self._task.wrong(logits, labels), self._task.labelled(labels)
        return torch.stack([each.double() for each in found])

    def _captured(self) -> torch.cuda.CUDAGraph:
        kept = [tensor.clone() for tensor in self._changed()]
        stream, graph = torch.cuda.current_stream(self._task.device), torch.cuda.CUDAGraph()
        if stream == torch.cuda.default_stream(self._task.device):  # on which nothing can be captured
            stream = torch.cuda.Stream(self._task.device)
        stream.wait_stream(torch.cuda.current_stream(self._task.device))
        with torch.random.fork_rng([self._task.device]):
            with torch.cuda.stream(stream):
                for _ in range(WARMUP):
                    self._one()
            torch.cuda.current_stream(self._task.device).wait_stream(stream)
            self._let_capture(True)
            with torch.cuda.graph(graph, stream=stream):
                self._found = self._one()
            self._let_capture(False)
        # What the optimiser had not begun to keep, it begins at zero.
        for tensor, before in itertools.zip_longest(self._changed(), kept, fillvalue=torch.zeros(())):
            tensor.copy_(before)
        return graph

    def _let_capture(self, capturable: bool) -> None:
        """What AdamW asks for in a capture, and warns of outside; SGD does not look at it."""
        for group in self._optimizer.param_groups:
            group["capturable"] = capturable

    def _changed(self) -> list[Tensor]:
        """What a step changes; last of it, what the optimiser keeps, which is nothing before its first step."""
        states = self._optimizer.state.values()
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self._network.state_dict().values(), self._next, *kept]
