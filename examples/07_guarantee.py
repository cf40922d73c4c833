"""Watch the guarantee hold: on average over batches, at most the promised share of the flagged are false alarms."""

from pathlib import Path

import numpy as np

from densitywatch.data.reading import resized
from densitywatch.detector.conformal import benjamini_hochberg, p_values
from densitywatch.detector.detector import load

detector, rng = load(Path("models/detector")), np.random.default_rng(1)
normal = detector.calibration  # scores of normal images that nothing was fitted on
foreign = detector.score(resized(np.load("data/panel/mnist.npy")[:30], detector.size)).score
half, batches = len(normal) // 2, 500
print(f"{batches} batches, each of {half:,} normal images and {len(foreign)} MNIST digits")

for promised in (0.05, 0.1, 0.2):
    false_share, found = np.zeros(batches), np.zeros(batches)
    for i in range(batches):
        drawn = rng.permutation(normal)  # one half calibrates, the other half is the batch
        scores = np.concatenate([drawn[half : 2 * half], foreign])
        flagged = benjamini_hochberg(p_values(np.sort(drawn[:half]), scores), promised)
        false_share[i] = flagged[:half].sum() / max(1, flagged.sum())
        found[i] = flagged[half:].mean()
    seen = f"{false_share.mean():.1%} seen; {found.mean():.0%} of the digits found"
    print(f"false alarms among the flagged: at most {promised:.0%} promised, {seen}")
