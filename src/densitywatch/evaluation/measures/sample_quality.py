"""Sample quality on the features of our own network, models/classifier.

Every figure compares generated images with test images, both at the model's size; the network resizes both to its own.
These figures do not compare with published ones, which use Inception. The published figure is `inception_fid`; it is
computed if params name Inception's weights.

All of them depend on the number of samples: fewer samples have a higher FID and less coverage. So every model is
compared on the same number, `evaluate.quality.slow_images`, which is what models can draw that draw pixel by pixel. The
same figures of as many training images stand next to them: what a perfect sampler gets at that number, up to chance.
Of a model that draws more samples, the FID of all of them is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densitywatch.data.reading import Images, images_within
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.context import Context, Figure, Result, spread
from densitywatch.evaluation.measures.distances import (
    frechet_distance,
    kernel_distance,
    manifold_figures,
    nearest_distances,
)
from densitywatch.evaluation.measures.feature_network import FeatureNetwork, features_of, load_classifier
from densitywatch.files import write_whole
from densitywatch.models.offers import PixelwiseDensity, Sampler, takes_labels
from densitywatch.pages import pictures
from densitywatch.sizes import height_width

SHOWN, NEIGHBOURS_SHOWN = 8, 3
MANY_TRAINING_IMAGES = 60_000
"""Most training images that are searched for neighbours."""


def sample_quality(context: Context) -> Result | None:
    """FID, KID, precision, recall, density and coverage of samples against test images, and of training images.

    `fid_floor`, `precision_of_real` and so on are those of as many training images. `fid_of_more` is the FID of all
    samples of a model that draws more than are compared, `more_images`, and `fid_floor_of_more` that of as many
    training images.

    Model: `sample(n, labels, generator) -> uint8 (n, C, H, W)`. A conditional model is asked for labels in the shares
    that they have in the training data.
    """
    model = context.model
    if not isinstance(model, Sampler):
        return None
    if context.classifier is None:
        return Result(
            {}, notes=["sample quality was left out: there is no feature network; run `dvc repro train_classifier`"]
        )
    settings = context.params.evaluate.quality
    network = feature_network(context)
    images, _ = generated(context, model)
    real, _ = context.pick("test", context.params.evaluate.test_images)
    train, _ = context.pick("train", MANY_TRAINING_IMAGES)
    test_features, fake_features = features_of(network, real), features_of(network, images)
    train_features = features_of(network, train)
    count = min(len(images), settings.slow_images, len(train))
    few = min(count, settings.neighbour_images)
    torch.manual_seed(context.params.seed)
    of_samples, of_real = (
        manifold_figures(test_features[:few], features[:few], settings.neighbours)
        for features in (fake_features, train_features)
    )
    metrics: dict[str, float | int | str] = {
        "fid": frechet_distance(test_features, fake_features[:count]),
        "fid_floor": frechet_distance(test_features, train_features[:count]),
        "kid": kernel_distance(test_features, fake_features[:count]),
        **of_samples,
        **{f"{name}_of_real": value for name, value in of_real.items()},
        "quality_images": count,
    }
    more = min(len(images), len(train))
    if more > count:
        metrics["fid_of_more"] = frechet_distance(test_features, fake_features[:more])
        metrics["fid_floor_of_more"] = frechet_distance(test_features, train_features[:more])
        metrics["more_images"] = more
    if settings.inception_weights is not None:
        from densitywatch.evaluation.measures.inception import inception_fid  # imports torchvision's models

        metrics["inception_fid"] = inception_fid(Path(settings.inception_weights), real, images, context.device)
        metrics["inception_images"] = len(images)
    neighbour_metrics, figure = training_neighbours(
        context, train, train_features, images, fake_features, test_features
    )
    space = "labels" if not network.rotations else "rotations, since there are no labels"
    note = (
        f"FID and KID compare {count:,} samples with {len(real):,} test images, precision, recall, density and coverage"
        f" {few:,} samples with {min(few, len(real)):,} test images, in the feature space of this project's own network"
        f" (trained on {space}); they do not compare with Inception figures. As many training images have an FID of"
        f" {metrics['fid_floor']:.2f}, a precision of {of_real['precision']:.3f}, a recall of {of_real['recall']:.3f},"
        f" a density of {of_real['density']:.2f} and a coverage of {of_real['coverage']:.3f}: what a perfect sampler"
        " gets, up to chance."
    )
    if more > count:
        note += (
            f" The FID of {more:,} samples is {metrics['fid_of_more']:.2f}, and of as many training images"
            f" {metrics['fid_floor_of_more']:.2f}."
        )
    return Result(metrics | neighbour_metrics, [figure], [note])


def generated(context: Context, model: Sampler) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples (N, C, H, W) of the model and the labels (N,) asked for; drawn once for all evaluators.

    They are kept in `context.shared["generated"]`.
    """
    if "generated" not in context.shared:
        settings = context.params.evaluate.quality
        n = settings.slow_images if isinstance(model, PixelwiseDensity) else settings.images
        n = images_within(n, context.dimensions)
        labels = training_labels(context, n) if takes_labels(model) else None
        context.shared["generated"] = (drawn(context, model, n, labels), labels)
    images, labels = context.shared["generated"]
    return images, labels


def training_labels(context: Context, n: int) -> np.ndarray:
    """Labels (n,) of training images drawn at random, so that samples have the same shares of labels."""
    _, known = context.pick("train")
    order = np.random.default_rng(context.params.seed).integers(0, len(known), n)
    return np.asarray(known[order])


def drawn(context: Context, model: Sampler, n: int, labels: np.ndarray | None) -> np.ndarray:
    """n samples (n, C, H, W), uint8. They go into one array at once: joined batches would be in memory twice."""
    images = np.empty((n, context.info.channels, *height_width(context.info.size)), np.uint8)
    done = 0
    for part in draw(model, n, labels, context.generator(), context.batch_size, context.device):
        images[done : done + len(part)] = part
        done += len(part)
    return images


def draw(
    model: Sampler,
    n: int,
    labels: np.ndarray | None,
    generator: torch.Generator,
    batch_size: int,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """n samples of a `model` on `device`, a batch at a time, uint8 (B, C, H, W). labels: (n,) where it takes them."""
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        asked = None if labels is None else torch.from_numpy(labels[start : start + count]).to(device)
        yield model.sample(count, labels=asked, generator=generator).cpu().numpy()


def feature_network(context: Context) -> FeatureNetwork:
    """models/classifier, loaded once for all evaluators. Raises ModelError when it is missing or does not fit."""
    if context.classifier is None:
        raise ModelError("models/classifier: there is no feature network; run `dvc repro train_classifier`")
    if "classifier" not in context.shared:
        network = load_classifier(context.classifier, context.device)
        if network.channels != context.info.channels:
            raise ModelError(
                f"models/classifier: made for images of {network.channels} channels, not {context.info.channels}; run"
                " `dvc repro train_classifier`"
            )
        context.shared["classifier"] = network
    loaded: FeatureNetwork = context.shared["classifier"]
    return loaded


def training_neighbours(
    context: Context,
    train: Images,
    features: Tensor,
    images: np.ndarray,
    fake_features: Tensor,
    test_features: Tensor,
) -> tuple[dict[str, float | int | str], Figure]:
    """The training images nearest to some samples, by pixels and by features: a model that memorises shows here.

    train: training images (M, C, H, W), and their features (M, D). images: the samples (N, C, H, W).

    `neighbour_ratio`: the median distance of a sample to its nearest training image in feature space, over the same
    median of test images. Near 1 samples are as new as test images; near 0 they are copies.
    """
    few = context.params.evaluate.quality.neighbour_images
    from_fake, fake_indices = nearest_distances(fake_features[:few], features, NEIGHBOURS_SHOWN)
    from_test, _ = nearest_distances(test_features[:few], features, 1)
    ratio = float(from_fake[:, 0].median() / from_test[:, 0].median().clamp(min=1e-12))
    shown = spread(len(from_fake), SHOWN)
    # distances of the shown samples by pixels, (SHOWN, training images), a chunk of training images at a time
    pixels = torch.from_numpy(images[shown]).flatten(1).float()
    step = images_within(5000, 4 * pixels.shape[1], 256 << 20)
    chunks = (torch.from_numpy(train[i : i + step]).flatten(1).float() for i in range(0, len(train), step))
    distances = torch.cat([torch.cdist(pixels, chunk) for chunk in chunks], 1)
    in_pixels = distances.topk(from_fake.shape[1], largest=False).indices
    rows = [
        np.concatenate([images[i : i + 1], train[in_pixels[j].numpy()], train[fake_indices[i].numpy()]])
        for j, i in enumerate(shown)
    ]
    columns = len(rows[0])
    write_whole(context.out / "neighbours.png", pictures.grid(np.concatenate(rows), columns))
    near = (columns - 1) // 2
    figure = Figure(
        "neighbours.png",
        "Nearest training images",
        f"First column: samples. Then the {near} nearest of {len(train):,} training images by pixels, then the"
        f" {near} nearest by features. A sample's nearest training image lies {ratio:.2f} times as far as a test"
        " image's (median, in features).",
    )
    return {"neighbour_ratio": ratio}, figure
