# Golden values for the augmentations that are there for studies:
#   torchvision.transforms.v2.functional on a uint8 CHW tensor (CPU), AutoAugment's
#   policy and strengths, and OpenCV's Sobel differences.
#
# Python 3.11, torch 2.11.0, torchvision 0.26.0, opencv-python-headless 5.0.0.93, numpy 2.3.5
#
#   python studies.py > studies.json
#
# The input of every case is the image of augment.py; "pixels" is the output, u8,
# row-major, interleaved RGB. Sobel's size of the gradient is cut to 255 and rounded.

import json
import math
import platform

import cv2
import numpy as np
import torch
import torchvision
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

WIDTH, HEIGHT = 24, 18


def test_image():
    y, x, c = np.meshgrid(range(HEIGHT), range(WIDTH), range(3), indexing="ij")
    v = x * 7 + y * 13 + c * 29 + (x * y % 17) * 5 + ((x ^ y) & 3) * 11
    return (v % 256).astype(np.uint8)


def cases(image):
    chw = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    # Equalising needs more pixels of each level than a small image has: fewer levels.
    coarse = (chw // 2 + 40).contiguous()
    for threshold in (0, 100, 170):
        yield "solarize", {"threshold": threshold}, F.solarize(chw, threshold)
    for bits in (3, 5):
        yield "posterize", {"bits": bits}, F.posterize(chw, bits)
    yield "invert", {}, F.invert(chw)
    yield "equalize", {}, F.equalize(chw)
    yield "autocontrast", {"coarse": True}, F.autocontrast(coarse)
    for factor in (0.1, 0.7, 1.9):
        yield "sharpness", {"factor": factor}, F.adjust_sharpness(chw, factor)
    for degrees in (-30.0, 10.0, 30.0, 90.0, 180.0, 270.0):
        yield "rotate_nearest", {"degrees": degrees}, F.rotate(chw, degrees, InterpolationMode.NEAREST)
    for degrees in (-77.0, 17.0, 180.0):
        yield "rotate", {"degrees": degrees}, F.rotate(chw, degrees, InterpolationMode.BILINEAR)
    # No strength at which a place lies just between two pixels, where float32 decides.
    for shear in (-0.19, 0.17, 0.3):
        out = F.affine(
            chw, angle=0.0, translate=[0, 0], scale=1.0,
            shear=[math.degrees(math.atan(shear)), 0.0],
            interpolation=InterpolationMode.NEAREST, center=[0, 0])
        yield "shear_nearest", {"shear": shear}, out
    border = cv2.BORDER_REFLECT_101
    x, y = (cv2.Sobel(image, cv2.CV_64F, dx, 1 - dx, ksize=3, borderType=border) for dx in (1, 0))
    size = np.floor(np.minimum(np.hypot(x, y), 255) + 0.5).astype(np.uint8)
    yield "sobel", {}, torch.from_numpy(size).permute(2, 0, 1)


def dump(value):
    return json.dumps(value, separators=(",", ":"))


def main():
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
    policy = v2.AutoAugment._get_policies(None, v2.AutoAugmentPolicy.IMAGENET)
    used = {name for pair in policy for name, _, strength in pair if strength is not None}
    space = v2.AutoAugment._AUGMENTATION_SPACE
    magnitudes = {name: space[name][0](10, HEIGHT, WIDTH).tolist() for name in sorted(used)}
    lines = []
    for op, params, out in cases(test_image()):
        assert out.dtype == torch.uint8
        pixels = out.permute(1, 2, 0).flatten().tolist()
        lines.append(dump({"op": op, "params": params, "pixels": pixels}))
    print('{"made_with":%s,\n"imagenet_policy":%s,\n"magnitudes":%s,\n"cases":[\n%s\n]}' % (
        dump(versions), dump(policy), dump(magnitudes), ",\n".join(lines)))


main()
