"""A small digit classifier: it judges generated digits by class and lends its features to the Fréchet distance.

B images, 64 features. `python -m disa.tiny.classifier` trains it again from scratch; the weights that come with the
package were made that way, and their metadata hold the seed, the recipe and the accuracy on held-out digits.
"""

import argparse
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from disa.errors import DisaError
from disa.files import clear_unfinished, write_whole
from disa.stopping import stop_later
from disa.tiny.data import IMAGE_SIZE, NUM_CLASSES, digits
from disa.tiny.resuming import check_same, command, stopped

WEIGHTS = files("disa.tiny") / "weights" / "digits-classifier.safetensors"
NUM_FEATURES = 64
ITERATIONS = 1500

_BATCH = 96
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_WARMUP = 0.1
_LARGEST_ROTATION = math.radians(12)
_LARGEST_SCALE = 0.12
_LARGEST_SHIFT = 2.5 * 2 / IMAGE_SIZE  # 2.5 pixels; affine_grid measures the image as [-1, 1]

Progress = Callable[[int, int, float], None]


class DigitClassifier(nn.Module):
    """Four convolutions, the mean over space, two linear layers. No batch statistics: an image is judged on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 32, stride=2),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 64, stride=1),
            *_convolution(64, 128, stride=2),
        )
        self.to_features = nn.Linear(128, NUM_FEATURES)
        self.to_logits = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer, [B, 64], of images [B, 1, 32, 32] in [-1, 1]. Raises DisaError for other shapes."""
        if images.ndim != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
            expected = f"[B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}]"
            raise DisaError(f"the digit classifier takes images of shape {expected}, not {list(images.shape)}.")
        return functional.silu(self.to_features(self.body(images).mean(dim=(2, 3))))

    def logits(self, features: Tensor) -> Tensor:
        """Class logits [B, 10] of features [B, 64]: the last layer alone, for callers who need both."""
        return self.to_logits(features)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [B, 10] of images [B, 1, 32, 32] in [-1, 1]."""
        return self.logits(self.features(images))


def _convolution(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)
    return [convolution, nn.GroupNorm(8, channels_out), nn.SiLU()]


def load_classifier(path: Path | None = None) -> DigitClassifier:
    """The trained classifier on the CPU, frozen: the weights of the package, or those that `train_classifier` wrote.

    Raises DisaError where the file is missing, damaged, or not the weights of this network.
    """
    source = WEIGHTS if path is None else path
    try:
        weights = safetensors.torch.load(source.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DisaError(f"cannot read the digit classifier from {source}: {error}") from error
    # On "meta" nothing is initialised, so loading leaves the global random state alone.
    with torch.device("meta"):
        classifier = DigitClassifier()
    expected, found = _layout(classifier.state_dict()), _layout(weights)
    if found != expected:
        differing = sorted(name for name, _, _ in expected ^ found)
        raise DisaError(
            f"{source} does not hold the weights of the digit classifier; first difference: {differing[0]}."
        )
    classifier.load_state_dict(weights, assign=True)
    return classifier.eval().requires_grad_(False)


def _layout(weights: dict[str, Tensor]) -> set[tuple[str, torch.Size, torch.dtype]]:
    return {(name, tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def train_classifier(
    path: Path, seed: int = 0, iterations: int = ITERATIONS, progress: Progress | None = None, resume: bool = True
) -> float:
    """Train on the "train" digits, write the weights to `path`, return the accuracy on the "test" digits in [0, 1].

    The last iteration is kept, whatever its accuracy: choosing by the test digits would make them training data.
    `progress(iteration, iterations, loss)` is called after each iteration. A training that was stopped goes on, from a
    file beside `path`; where `path` is of another one it is refused, unless `resume` is false. Raises DisaError, also
    if `path` is not writable, and `Stopped` after Ctrl-C or SIGTERM.
    """
    fit = _Fit(seed, iterations)
    state = path.with_suffix(".state.pt")
    _take_up(fit, path, state, resume)
    clear_unfinished(path.parent)
    with stop_later() as stop:
        while fit.iteration < iterations and not stop.signum:
            loss = fit.step()
            if progress is not None:
                progress(fit.iteration, iterations, loss)
        if stop.signum:
            write_whole(state, lambda file: torch.save(fit.state(), file))
    if stop.signum:
        raise stopped(fit.iteration, iterations, _command(path, fit.options), stop.signum)
    accuracy = _test_accuracy(fit.classifier.eval())
    metadata = {"test_accuracy": f"{accuracy:.4f}", "seed": str(seed), "recipe": _recipe(iterations)}
    content = safetensors.torch.save(fit.classifier.state_dict(), metadata)
    write_whole(path, lambda file: file.write(content))
    state.unlink(missing_ok=True)
    return accuracy


class _Fit:
    """A classifier in training."""

    def __init__(self, seed: int, iterations: int) -> None:
        self.options = {"seed": seed, "iterations": iterations}
        # Initialisation draws from the global generator; the caller's random state is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = DigitClassifier()
        self.random, self.iteration = torch.Generator().manual_seed(seed), 0
        self.optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        self.rate = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, _LEARNING_RATE, total_steps=iterations, pct_start=_WARMUP
        )
        self.images, self.labels = digits("train")

    def step(self) -> float:
        """One iteration; returns the loss."""
        chosen = torch.randint(len(self.images), (_BATCH,), generator=self.random)
        images = augment(self.images[chosen], self.random)
        loss = functional.cross_entropy(self.classifier(images), self.labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.rate.step()
        self.iteration += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed training needs."""
        parts = {"classifier": self.classifier, "optimizer": self.optimizer, "rate": self.rate}
        states = {name: part.state_dict() for name, part in parts.items()}
        return {"options": self.options, "iteration": self.iteration, "random": self.random.get_state(), **states}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.iteration = state["iteration"]
        self.random.set_state(state["random"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])


def _take_up(fit: _Fit, path: Path, state: Path, resume: bool) -> None:
    """Go on with a training that was stopped; refuse another one, and what is no classifier. Raises DisaError."""
    if resume and state.exists():
        try:
            found = torch.load(state, weights_only=True)
            options = dict(found["options"])
            check_same(options, fit.options, state, _command(path, options))
            fit.restore(found)
        except DisaError:
            raise
        except Exception as error:
            raise DisaError(f"{state} is not the state of a training. Remove it to start again.") from error
    elif path.exists():
        options = _options_of(path)
        if resume:
            check_same(options, fit.options, path, _command(path, options))


def _options_of(path: Path) -> dict[str, Any]:
    """What a trained classifier was made with. Raises DisaError for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        return {"seed": int(metadata["seed"]), "iterations": int(metadata["recipe"].split()[0])}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DisaError(f"{path} is not a digit classifier: choose another folder.") from error


def _command(path: Path, options: dict[str, Any]) -> str:
    own = options["iterations"] == ITERATIONS
    return command(path.stem, path.parent, seed=options["seed"], iterations=None if own else options["iterations"])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [B, 1, 32, 32] turned by up to 12 degrees, scaled by up to 12 %, and shifted by up to 2.5 pixels."""
    turn, stretch_x, stretch_y, shift_x, shift_y = torch.rand(5, len(images), generator=generator) * 2 - 1
    angle = turn * _LARGEST_ROTATION
    scale_x, scale_y = torch.exp(stretch_x * _LARGEST_SCALE), torch.exp(stretch_y * _LARGEST_SCALE)
    top = torch.stack([angle.cos() * scale_x, -angle.sin() * scale_y, shift_x * _LARGEST_SHIFT], dim=1)
    bottom = torch.stack([angle.sin() * scale_x, angle.cos() * scale_y, shift_y * _LARGEST_SHIFT], dim=1)
    grid = functional.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    # What comes in from outside must be paper, -1, and grid_sample pads with 0.
    return functional.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1


@torch.no_grad()
def _test_accuracy(classifier: DigitClassifier) -> float:
    images, labels = digits("test")
    return (classifier(images).argmax(dim=1) == labels).double().mean().item()


def _recipe(iterations: int) -> str:
    return (
        f"{iterations} iterations of AdamW, batch {_BATCH}, one-cycle learning rate up to {_LEARNING_RATE}, "
        f"weight decay {_WEIGHT_DECAY}; digits 'train' with rotations, scales and shifts"
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description="Train the digit classifier and write its weights.")
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    arguments = parser.parse_args()
    accuracy = train_classifier(arguments.path, arguments.seed, arguments.iterations, _print_progress)
    print(f"{arguments.path}: accuracy on held-out digits {accuracy:.4f}")


def _print_progress(iteration: int, iterations: int, loss: float) -> None:
    if iteration % 100 == 0 or iteration == iterations:
        print(f"iteration {iteration}/{iterations}  loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    _main()
