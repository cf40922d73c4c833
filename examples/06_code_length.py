"""A likelihood is a code length: pack test images with PixelCNN's probabilities, and unpack them again.

Another process gets the file and the model alone, and must give back every byte. So bits/dim, the bits for each value
of each pixel, are the size of a real file.
"""

from pathlib import Path

from densitywatch.evaluation.measures.code_length import verify_likelihood
from densitywatch.params import load_params

root = Path.cwd()
out = Path("var/examples/images.dwcode")

# the same as `densitywatch verify-likelihood pixelcnn -n 16 --out var/examples/images.dwcode`
length = verify_likelihood("pixelcnn", 16, load_params(root / "params.yaml"), root, out)

print(f"{length.images} test images in {out}, {out.stat().st_size:,} bytes; decoded elsewhere, byte for byte")
print(f"the file takes    {length.file:.3f} bits/dim, header and all")
print(f"the model says    {length.computed:.3f}")
print(f"PNG takes         {length.png:.3f}")
print(f"lossless WebP     {length.webp:.3f}")
print(f"xz, all in one    {length.xz:.3f}")
