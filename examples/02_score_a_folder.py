"""Score a folder of images: which ones do not belong, and why. Give a folder of your own, or take the demo batch."""

import sys
from pathlib import Path

import pyarrow.parquet as pq

from densitywatch.batches.score_batch import score_source
from densitywatch.params import load_params

source = sys.argv[1] if len(sys.argv) > 1 else "data/inbox/demo"
root = Path.cwd()
out = root / "var" / "examples" / "scored" / Path(source).name

# the same as `densitywatch score data/inbox/demo --out var/examples/scored/demo`
summary = score_source(source, load_params(root / "params.yaml"), root, out)
print(f"{summary['files']} files: {summary['scored']} scored, {summary['quarantined']} unreadable")
print(f"{summary['outliers']} images are flagged. {summary['promise']}")

print("The least usual images:")
for row in pq.read_table(out / "gallery.parquet", columns=["path", "p_value", "why"]).slice(0, 5).to_pylist():
    print(f"  {row['path']}: p-value {row['p_value']:.2g}. {row['why']}")

print("The unreadable files:")
scores = pq.read_table(out / "scores.parquet", columns=["path", "status", "reason"]).to_pylist()
for row in scores:
    if row["status"] == "quarantined":
        print(f"  {row['path']}: {row['reason']}")
print(f"A page with pictures and surprise maps: {(out / 'report.html').relative_to(root)}")
