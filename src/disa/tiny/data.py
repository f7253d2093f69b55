"""Real data that fits in a package: handwritten digits as one-channel images of 32x32 pixels.

B images. The source is scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set:
1797 digits of 13 writers, 8x8 pixels, integer values 0 to 16. It comes with scikit-learn, so nothing is downloaded.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from disa.errors import DisaError

Split = Literal["all", "train", "test"]

IMAGE_SIZE = 32
NUM_CLASSES = 10
_LARGEST_VALUE = 16.0
_TEST_EVERY = 5


def digits(split: Split = "all") -> tuple[Tensor, Tensor]:
    """The digits of one split, in the order of the data set.

    Returns images, float32 [B, 1, 32, 32] in [-1, 1] (-1 is paper, 1 is ink), and labels, int64 [B] in 0..9; both are
    copies the caller may change. "all" has 1797 images, "train" about 80 % and "test" about 20 % of each class.

    Raises DisaError for an unknown split, and where scikit-learn is missing.
    """
    if split not in get_args(Split):
        raise DisaError(f'digits() knows the splits "all", "train" and "test", not {split!r}.')
    images, labels = _all_digits()
    if split == "all":
        return images.clone(), labels.clone()
    chosen = _is_test(labels) if split == "test" else ~_is_test(labels)
    return images[chosen], labels[chosen]


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DisaError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    small = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    # Bicubic interpolation overshoots at edges; the range of the data is the range of the images.
    images = images.clamp(0, _LARGEST_VALUE) * (2 / _LARGEST_VALUE) - 1
    return images, torch.as_tensor(labels, dtype=torch.int64)


def _is_test(labels: Tensor) -> Tensor:
    """Every fifth image of each class, bool [B].

    A rule instead of a random split: it is stratified, and no version of any random generator can change it. Writers
    follow each other in the data set, so both splits hold every writer: the test measures new digits, not new hands.
    """
    one_hot = torch.nn.functional.one_hot(labels, NUM_CLASSES)
    position_in_class = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1) - 1
    return position_in_class % _TEST_EVERY == _TEST_EVERY - 1
