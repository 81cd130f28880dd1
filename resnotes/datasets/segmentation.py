"""The record every segmentation data set is read into: images of any size with a class for each pixel."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, overload

import torch
from torch import Tensor

from resnotes.datasets.classification import Normalization, spaced
from resnotes.errors import UsageError

IGNORED = 255  # the label of pixels that count neither in the loss nor in a score


class Object(NamedTuple):
    """One labelled region of a made image, and what makes it hard to name.

    Attributes:
        label: its true class.
        ambiguity: `relationship`, `confusion`, `inconspicuous` (Zhao et al. 2017, sec. 3.1) or `none`.
        thing: a countable thing, which an annotator may miss; not part of the ground or the background.
    """

    label: int
    ambiguity: str
    thing: bool


class Sample(NamedTuple):
    """One image and its labels.

    Attributes:
        image: uint8 `[3, H, W]`.
        label: uint8 `[H, W]`, indices of classes, or the data set's `ignore_index`.
        scene: what kind of place it shows; empty where that is not known.
        name: of the image within its data set.
        instances: uint8 `[H, W]`, indices into `objects`; None in data sets that do not know them.
        objects: the regions of a made image.
    """

    image: Tensor
    label: Tensor
    scene: str
    name: str
    instances: Tensor | None = None
    objects: tuple[Object, ...] = ()


class Split(Sequence[Sample]):
    """The samples of one split; a slice is a split too."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """The samples at `indices`, in this order."""

    @abstractmethod
    def _sample(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Sample | Self:
        # A range knows about negative indices, steps and ends.
        places = range(len(self))
        return self.subset(places[index]) if isinstance(index, slice) else self._sample(places[index])


@dataclass(frozen=True, eq=False)
class Stacked(Split):
    """Samples of one size, in memory or mapped from disk.

    Attributes:
        images: uint8 `[N, 3, H, W]`.
        labels: uint8 `[N, H, W]`.
        names: one a sample.
        scenes: one a sample; empty where they are not known.
        instances: uint8 `[N, H, W]`, or None.
        objects: those of each sample; empty where they are not known.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    scenes: tuple[str, ...] = ()
    instances: Tensor | None = None
    objects: tuple[tuple[Object, ...], ...] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """The `samples`, all of one size and all with instances or all without."""
        images, labels, scenes, names, instances, objects = zip(*samples, strict=True)
        known = None if instances[0] is None else torch.stack(instances)
        return cls(torch.stack(images), torch.stack(labels), names, scenes, known, objects)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Self:
        """The samples at `indices`, in this order."""
        chosen = list(indices)
        return type(self)(
            self.images[chosen],
            self.labels[chosen],
            tuple(self.names[i] for i in chosen),
            tuple(self.scenes[i] for i in chosen if self.scenes),
            None if self.instances is None else self.instances[chosen],
            tuple(self.objects[i] for i in chosen if self.objects),
        )

    def _sample(self, index: int) -> Sample:
        return Sample(
            self.images[index],
            self.labels[index],
            self.scenes[index] if self.scenes else "",
            self.names[index],
            None if self.instances is None else self.instances[index],
            self.objects[index] if self.objects else (),
        )


@dataclass(frozen=True, eq=False)
class Lazy(Split):
    """Samples that are decoded whenever they are asked for.

    Attributes:
        names: one a sample.
        decode: reads the sample of a name; a function that pickles, for the workers of a DataLoader.
    """

    names: tuple[str, ...]
    decode: Callable[[str], Sample]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Self:
        """The samples at `indices`, in this order."""
        return type(self)(tuple(self.names[i] for i in indices), self.decode)

    def _sample(self, index: int) -> Sample:
        return self.decode(self.names[index])

    @property
    def images(self) -> Column:
        """uint8 `[3, H, W]` of each sample."""
        return Column(self, "image")

    @property
    def labels(self) -> Column:
        """uint8 `[H, W]` of each sample."""
        return Column(self, "label")


@dataclass(frozen=True, eq=False)
class Column(Sequence[Tensor]):
    """The images or the labels of a split, each decoded whenever it is asked for; a slice is a column, too.

    Attributes:
        split: the samples.
        field: which of their tensors.
    """

    split: Split
    field: Literal["image", "label"]

    def __len__(self) -> int:
        return len(self.split)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Column: ...
    def __getitem__(self, index: int | slice) -> Tensor | Column:
        if isinstance(index, slice):
            return Column(self.split[index], self.field)
        tensor: Tensor = getattr(self.split[index], self.field)
        return tensor


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Images and label maps of a training and a test set.

    Attributes:
        name: as `resnotes.datasets.load` takes it.
        variant: which edition of the data this is; results are comparable only within one.
        classes: names, in label order.
        ignore_index: the label of pixels that no one named; 255 where every pixel has a class.
        train: the training samples; may be empty in a sample of a data set.
        test: the samples that results are reported on.
        val: a third split, where the data set has one.
        normalization: by channel.
        fingerprint: 16 hex digits of a SHA-256; of what, the loader says.
    """

    name: str
    variant: str
    classes: tuple[str, ...]
    ignore_index: int
    train: Split
    test: Split
    val: Split | None
    normalization: Normalization
    fingerprint: str

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.train), len(self.test)

    def train_subset(self, n: int) -> Segmentation:
        """The same data with only `n` training images, evenly spaced, as neighbours may be frames of one film.

        Normalization, variant and fingerprint stay those of the full set.

        Raises:
            UsageError: `n` is not 1 to the number of training images.
        """
        available = len(self.train)
        if not 1 <= n <= available:
            raise UsageError(f"a training subset of {n} images is not possible; allowed: 1 to {available} (all)")
        return dataclasses.replace(self, train=self.train.subset(spaced(available, n).tolist()))

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return 3

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored one."""
        return len(self.classes)
