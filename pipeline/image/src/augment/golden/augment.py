# Golden values for the augmentations, in two arithmetics:
#   "torchvision"  torchvision.transforms.v2.functional on a uint8 CHW tensor (CPU)
#   "paper"        the TensorFlow ops of the SimCLR authors' code, on float32 in [0,1]
#
# Python 3.11, torch 2.11.0, torchvision 0.26.0, tensorflow-cpu 2.21.0, numpy 2.4.6
#
#   python augment.py > augment.json
#
# Run it on a CPU with AVX2: without it torchvision resizes uint8 another way.
#
# The input of every case is the image made by test_image() below; "pixels" is the
# output, u8, row-major, interleaved RGB. In "paper" mode the input is u8/255 in
# float32, the result is clipped to [0,1] and stored as floor(x*255 + 0.5), also in
# float32, which is Rust's (x * 255.0).round() for these non-negative values.

import json
import platform

import numpy as np
import tensorflow as tf
import torch
import torchvision
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

WIDTH, HEIGHT = 24, 18
SIZE = 8  # side of every resized crop
CROPS = [(3, 2, 11, 15), (0, 0, 18, 24), (4, 5, 4, 5)]  # top, left, height, width
FACTORS = [0.3, 1.7]
HUES = [-0.2, 0.13, 0.5]  # in turns
SIGMAS = [0.4, 1.3, 2.0]


def test_image():
    y, x, c = np.meshgrid(range(HEIGHT), range(WIDTH), range(3), indexing="ij")
    v = x * 7 + y * 13 + c * 29 + (x * y % 17) * 5 + ((x ^ y) & 3) * 11
    return (v % 256).astype(np.uint8)


def crop_params(crop, interpolation, antialias):
    params = dict(zip(("top", "left", "height", "width"), crop))
    params.update(out_height=SIZE, out_width=SIZE)
    params.update(interpolation=interpolation, antialias=antialias)
    return params


def torchvision_cases(image):
    chw = torch.from_numpy(image).permute(2, 0, 1).contiguous()

    def case(op, params, out):
        assert out.dtype == torch.uint8
        return "torchvision", op, params, out.permute(1, 2, 0).numpy()

    for interpolation in ("bicubic", "bilinear"):
        for crop in CROPS:
            out = F.resized_crop(
                chw, *crop, size=[SIZE, SIZE],
                interpolation=InterpolationMode(interpolation), antialias=True)
            yield case("resized_crop", crop_params(crop, interpolation, True), out)
    yield case("horizontal_flip", {}, F.horizontal_flip(chw))
    for op in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        for f in FACTORS:
            yield case(op.__name__, {"factor": f}, op(chw, f))
    for d in HUES:
        yield case("adjust_hue", {"delta": d}, F.adjust_hue(chw, d))
    yield case("rgb_to_grayscale", {}, F.rgb_to_grayscale(chw, num_output_channels=3))
    for kernel_size, sigma in [(23, s) for s in SIGMAS] + [(3, 1.0)]:
        out = F.gaussian_blur(chw, [kernel_size, kernel_size], [sigma, sigma])
        yield case("gaussian_blur", {"kernel_size": kernel_size, "sigma": sigma}, out)


def zero_padded_blur(image, radius, sigma):
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    taps = tf.exp(-offsets**2 / (2 * sigma**2))
    taps /= tf.reduce_sum(taps)
    out = image[tf.newaxis]
    for shape in ([1, -1, 1, 1], [-1, 1, 1, 1]):  # along x, then along y
        kernel = tf.tile(tf.reshape(taps, shape), [1, 1, 3, 1])
        out = tf.nn.depthwise_conv2d(out, kernel, strides=[1] * 4, padding="SAME")
    return out[0]


def paper_cases(image):
    x = tf.constant(image.astype(np.float32) / np.float32(255))

    def case(op, params, out):
        out = np.clip(out.numpy(), 0, 1)
        assert out.dtype == np.float32
        u8 = np.floor(out * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        return "paper", op, params, u8

    for crop in CROPS:
        top, left, height, width = crop
        part = x[top:top + height, left:left + width]
        out = tf.image.resize(part, [SIZE, SIZE], method="bicubic", antialias=False)
        yield case("resized_crop", crop_params(crop, "bicubic", False), out)
    for f in FACTORS:
        yield case("adjust_brightness", {"factor": f}, x * f)
    for d in (-0.4, 0.5):
        yield case("add_brightness", {"delta": d}, tf.image.adjust_brightness(x, d))
    for f in FACTORS:
        yield case("adjust_contrast", {"factor": f}, tf.image.adjust_contrast(x, f))
    for f in FACTORS:
        yield case("adjust_saturation", {"factor": f}, tf.image.adjust_saturation(x, f))
    for d in HUES:
        yield case("adjust_hue", {"delta": d}, tf.image.adjust_hue(x, d))
    gray = tf.tile(tf.image.rgb_to_grayscale(x), [1, 1, 3])
    yield case("rgb_to_grayscale", {}, gray)
    for sigma in SIGMAS:
        out = zero_padded_blur(x, 11, sigma)
        yield case("gaussian_blur", {"kernel_size": 23, "sigma": sigma}, out)


def dump(value):
    return json.dumps(value, separators=(",", ":"))


def main():
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }
    image = test_image()
    lines = []
    for mode, op, params, out in [*torchvision_cases(image), *paper_cases(image)]:
        height, width, _ = out.shape
        lines.append(dump({
            "mode": mode, "op": op, "params": params,
            "width": width, "height": height, "pixels": out.flatten().tolist(),
        }))
    print('{"made_with":%s,\n"cases":[\n%s\n]}' % (dump(versions), ",\n".join(lines)))


main()
