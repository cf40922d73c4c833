"""Give each image a label by Bayes' rule, or reject it by the detector's p-value (`score --labels` asks by label)."""

from pathlib import Path

import numpy as np

import densitywatch
from densitywatch.batches.scorer import WithLabels
from densitywatch.data.dataset import open_split
from densitywatch.data.reading import resized
from densitywatch.detector.detector import load

where = "models/conditional_pixelcnn"  # gives p(image | label) for every label
watch = WithLabels(load(Path("models/detector")), densitywatch.load_model(where), where)
names, rate = watch.class_names, watch.false_alarm_rate

test = open_split(Path("data/prepared"), "test")
images, labels = np.array(test.images[:100]), test.labels[:100]
scores = watch.score(images)
kept = scores.p_value > rate
right = scores.label == labels
print(f"test images: {(~kept).mean():.0%} rejected at a false-alarm rate of {rate:.0%}")
print(f"the label is right for {right[kept].mean():.0%} of the others")
sure = np.argsort(-scores.label_probability)[:90]
print(f"and for {right[sure].mean():.0%} of the 90 images whose label is surest")

digits = resized(np.load("data/panel/mnist.npy")[:30], watch.size)
scores = watch.score(digits)
print(f"MNIST digits: {(scores.p_value <= rate).mean():.0%} rejected")
print(f"without the detector the first digit would be called {names[scores.label[0]]}")
