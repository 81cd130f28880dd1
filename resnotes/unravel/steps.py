"""A network as lesions evaluate it, step by step, compared with the network as a whole before it is used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.adapters import Parts, blocks_of
from resnotes.models.inputs import beside, check_result, evaluating
from resnotes.models.network import agree, copied, has_forward
from resnotes.models.passes import in_a_row, visit


class Steps:
    """A copy of a network in eval mode, step by step. No step writes over its argument, which others may read.

    Args:
        model: a network with stem, blocks and head.
        memory_format: of its weights and maps; ``torch.channels_last`` is up to half again as fast.
    """

    def __init__(self, model: nn.Module, memory_format: torch.memory_format) -> None:
        self.module: Any = copied(model).eval().to(memory_format=memory_format)
        self.blocks = blocks_of(self.module)
        self._memory_format = memory_format

    def input(self, images: Tensor) -> Tensor:
        """A copy of `images` as the network takes them: the stem may write over it."""
        return beside(images, next(self.module.parameters(), images)).clone(memory_format=self._memory_format)

    def stem(self, images: Tensor) -> Tensor:
        """Images to the first block's input, in the precision of the weights."""
        x = self.input(images)
        found = cast(Tensor, self.module.stem(x))
        return found.to(x.dtype) if x.is_floating_point() else found

    def keep(self, i: int, x: Tensor) -> Tensor:
        """The output of block `i` as it is."""
        return _whole(self.blocks[i], x)

    def delete(self, i: int, x: Tensor) -> Tensor:
        """What is left of the output of block `i` without the residual branch."""
        block, copy = self.blocks[i], x.clone()
        return block.after(copy if block.shortcut is None else block.shortcut(copy).to(x.dtype))

    def head(self, x: Tensor) -> Tensor:
        """The last block's output to logits."""
        return cast(Tensor, self.module.head(x.clone()))

    def logits(self, images: Tensor) -> Tensor:
        """The logits of the whole network, as its own forward computes them, if it has one."""
        images = self.input(images)
        if has_forward(self.module):
            return check_result(self.module(images), type(self.module).__name__, len(images))
        return in_a_row(self.module, images, _whole)[-1]


class Repaired(Steps):
    """Steps that first take the statistics of their BN layers anew, from repair images that take the same steps.

    Every map holds those of the repair images before those of the images that are measured. The former go through BN
    in training mode, all at once, and leave their statistics to the latter; all else is in eval mode. So whatever
    lesions begin alike with is shared, statistics included, and what a lesion leaves in a layer is gone when the next
    one comes there.

    Args:
        steps: of the network; its copy is taken over.
        repair: normalised images ``[M, C, H, W]``.
    """

    def __init__(self, steps: Steps, repair: Tensor) -> None:
        vars(self).update(vars(steps))
        self._repair = repair
        self._norms = [each for each in self.module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.momentum = None  # the average over all batches since the statistics were reset: over one

    def stem(self, images: Tensor) -> Tensor:
        """Images to the first block's input; behind that of the repair images, as in all maps."""
        return self._anew(super().stem, torch.cat([self.input(self._repair), self.input(images)]))

    def keep(self, i: int, x: Tensor) -> Tensor:
        """See `Steps.keep`."""
        return self._anew(partial(super().keep, i), x)

    def delete(self, i: int, x: Tensor) -> Tensor:
        """See `Steps.delete`."""
        return self._anew(partial(super().delete, i), x)

    def head(self, x: Tensor) -> Tensor:
        """Logits of the images that are measured."""
        return self._anew(super().head, x)[len(self._repair) :]

    def _anew(self, step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The step with new statistics in its BN layers; those of other steps are reset, which nothing reads."""
        repair, images = x[: len(self._repair)], x[len(self._repair) :]
        for norm in self._norms:
            norm.reset_running_stats()  # else what is no number would stay one
            norm.train()
        repair = step(repair)
        for norm in self._norms:
            norm.eval()
        return torch.cat([repair, step(images)])


def _whole(block: Parts, x: Tensor) -> Tensor:
    """The output of a block, as it computes it itself; by its parts, where it only holds them."""
    output = cast(Any, block)(x.clone()) if has_forward(block) else visit(block, x).output
    return check_result(output, f"a {type(block).__name__}").to(x.dtype)


@torch.inference_mode()
def prepare(model: nn.Module, images: Tensor) -> Steps:
    """The steps of `model`: with the channels last, if that does on two images what the model does, else as it is.

    Raises:
        UsageError: the model cannot be evaluated on the images; it is not its stem, its blocks and its head in a row;
            or its logits for an image depend on chance or on the other images.
    """
    weight = next(model.parameters(), images)
    plain = Steps(model, torch.contiguous_format)
    with autocast(weight.device, "float32"), evaluating(model, images):
        _check(plain, type(model).__name__, images)
        if torch.finfo(weight.dtype).bits < 32:  # so coarse that a difference could not be told from rounding
            return plain
        with contextlib.suppress(Exception):  # a `view` in a network that somebody else wrote needs the channels first
            fast = Steps(model, torch.channels_last)
            if agree(in_a_row(fast.module, fast.input(images[:2]), _whole)[-1], plain.logits(images[:2])):
                return fast
    return plain


def _check(steps: Steps, name: str, images: Tensor) -> None:
    """Refuse what lesions cannot be evaluated of step by step and image by image."""
    for where, module in steps.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"{where} of {name} keeps no running statistics, so that the logits of an image would depend on the"
                " others in its batch"
            )
    stepped = in_a_row(steps.module, steps.input(images[:1]), _whole)[-1]  # first: says which part is at fault
    first = steps.logits(images[:1])
    if not agree(steps.logits(images[:1]), first, units=8):
        raise UsageError(f"{name} puts out other logits each time, in eval mode, too")
    if not agree(stepped, first, units=8):
        raise UsageError(f"{name} puts out something else than its stem, its blocks and its head in a row")
    if len(images) > 1 and not agree(steps.logits(images[:2]), torch.cat([first, steps.logits(images[1:2])])):
        raise UsageError(f"the logits that {name} puts out for an image depend on the others in its batch")


@dataclass(frozen=True)
class Site:
    """A block as one image finds it: shapes ``[C, H, W]`` before and after, and after it without its residual.

    The last is None where the block cannot do without, since its parts then do not fit each other.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lesioned: tuple[int, ...] | None

    @property
    def largest(self) -> int:
        """Numbers in the larger of its maps."""
        return max(math.prod(self.inputs), math.prod(self.outputs))


@torch.inference_mode()
def survey(steps: Steps, image: Tensor) -> list[Site]:
    """The blocks of a network, on their way from one normalised image ``[1, C, H, W]``."""
    sites = []
    x = steps.stem(image)
    for i in range(len(steps.blocks)):
        lesioned = None
        with contextlib.suppress(Exception):  # what follows the addition may be made for other channels
            lesioned = tuple(steps.delete(i, x).shape[1:])
        inputs, x = x, steps.keep(i, x)
        sites.append(Site(tuple(inputs.shape[1:]), tuple(x.shape[1:]), lesioned))
    return sites
