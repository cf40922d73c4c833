"""Watch what is promised hold: for single batches on average, and for all flags of a stream of batches together."""

from pathlib import Path

import numpy as np

from densitywatch.data.reading import resized
from densitywatch.detector.conformal import benjamini_hochberg, p_values
from densitywatch.detector.detector import load
from densitywatch.detector.stream import Past, after, decide

detector, rng, size = load(Path("models/detector")), np.random.default_rng(1), 30
normal, half = detector.calibration, len(detector.calibration) // 2  # scores that nothing was fitted on
foreign = detector.score(resized(np.load("data/panel/mnist.npy")[:30], detector.size)).score
for promised in (0.05, 0.1, 0.2):
    shares, batch, stream = [], np.zeros(2), np.zeros(2)  # (false flags, flags) of each rule
    for _ in range(50):  # one half calibrates, the other half arrives in batches
        drawn, past = rng.permutation(normal), Past()
        for start in range(half, len(normal) - size + 1, size):
            scores, known = drawn[start : start + size], 3 if rng.uniform() < 0.02 else 0  # of 50 batches, 1 has digits
            scores[:known] = rng.choice(foreign, known)
            alone = benjamini_hochberg(p := p_values(np.sort(drawn[:half]), scores), promised)
            together = decide(p, half, promised, past)
            past = after(past, int(together.flags.sum()), together.charged)
            batch += (false := alone[known:].sum()), alone.sum()
            shares.append(false / max(1, alone.sum()))
            stream += together.flags[known:].sum(), together.flags.sum()
        stream += 0, past.flagged == 0  # a stream without flags counts as one flag
    print(f"false alarms, at most {promised:.0%} promised: {np.mean(shares):.1%} on average over batches judged alone")
    print(f"    of all flags: {batch[0] / max(1, batch[1]):.0%} alone, {stream[0] / stream[1]:.0%} as one stream")
