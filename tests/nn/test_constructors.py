"""What a layer is built with: NumPy's numbers count, everything else is refused in one line."""

import numpy as np
import pytest

from gpuconv import data, models, nn

F, I8, I64 = np.float64, np.uint8, np.int64

WRONG = [
    (lambda: nn.Linear(3.0, 2), TypeError, "Linear: in_features must be an int, got 3.0"),
    (lambda: nn.Linear(True, 2), TypeError, "Linear: in_features must be an int, got True"),
    (lambda: nn.Linear(3, "2"), TypeError, "Linear: out_features must be an int, got '2'"),
    (lambda: nn.Linear(3, 0), ValueError, "Linear: out_features must be at least 1, got 0"),
    (lambda: nn.Linear(2**64, 2), ValueError, "Linear: in_features must be at most 2147483647"),
    (lambda: nn.Linear(3, F(2)), TypeError, "Linear: out_features must be an int"),
    (lambda: nn.Linear(3, 2, bias="no"), TypeError, "Linear: bias must be True or False, got 'no'"),
    (lambda: nn.Conv2d(0, 4, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, -4, 3), ValueError, "Conv2d: out_channels must be at least 1, got -4"),
    (lambda: nn.Conv2d(1, 4.0, 3), TypeError, "Conv2d: out_channels must be an int, got 4.0"),
    (lambda: nn.Conv2d(1, 4, 3, groups="1"), TypeError, "Conv2d: groups must be an int, got '1'"),
    (lambda: nn.Conv2d(1, 4, 3, groups=0), ValueError, "Conv2d: groups must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "Conv2d: groups=2 must divide"),
    (lambda: nn.Conv2d(1, 4, 3.0), TypeError, "kernel_size must be an int or a pair of ints"),
    (lambda: nn.Conv2d(1, 4, np.ones(2, int)), TypeError, "kernel_size must be an int or a pair"),
    (lambda: nn.Conv2d(1, 4, None), TypeError, "kernel_size must be an int or a pair of ints"),
    (lambda: nn.Conv2d(1, 4, 3, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, 4, 3, stride=2**64), ValueError, "stride must be at most 2147483647"),
    (lambda: nn.Conv2d(1, 4, 3, padding=(2**31, 0)), ValueError, "padding must be at most"),
    (lambda: nn.Conv2d(1, 4, 3, padding=-1), ValueError, "padding must be at least 0, got -1"),
    (lambda: nn.Conv2d(1, 4, 3, dilation=True), TypeError, "dilation must be an int or a pair"),
    (lambda: nn.Conv2d(1, 4, 3, bias=None), TypeError, "Conv2d: bias must be True or False"),
    (lambda: nn.MaxPool2d("2"), TypeError, "kernel_size must be an int or a pair of ints, got '2'"),
    (lambda: nn.MaxPool2d(2, ceil_mode="no"), TypeError, "ceil_mode must be True or False"),
    (lambda: nn.SumPool2d(2, 0.5), TypeError, "stride must be an int or a pair of ints, got 0.5"),
    (lambda: nn.AvgPool2d(2, count_include_pad=None), TypeError, "AvgPool2d: count_include_pad"),
    (lambda: nn.AdaptiveAvgPool2d(0), ValueError, "output_size must be at least 1, got 0"),
    (lambda: nn.AdaptiveAvgPool2d((1, None)), TypeError, "output_size must be an int or a pair"),
    (lambda: nn.BatchNorm2d(4.0), TypeError, "BatchNorm2d: num_features must be an int, got 4.0"),
    (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features must be at least 1, got 0"),
    (lambda: nn.BatchNorm2d(4, eps="1"), TypeError, "BatchNorm2d: eps must be a number, got '1'"),
    (lambda: nn.BatchNorm2d(4, eps=-1), ValueError, "BatchNorm2d: eps must be a finite number >="),
    (lambda: nn.BatchNorm2d(4, momentum="x"), TypeError, "BatchNorm2d: momentum must be a number"),
    (lambda: nn.BatchNorm2d(4, momentum=2), ValueError, "BatchNorm2d: momentum must be a finite"),
    (lambda: nn.BatchNorm2d(4, affine="no"), TypeError, "BatchNorm2d: affine must be True or"),
    (lambda: nn.Dropout("0.5"), TypeError, "Dropout: p must be a number, got '0.5'"),
    (lambda: nn.Dropout(True), TypeError, "Dropout: p must be a number, got True"),
    (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be a finite number >= 0 and <= 1"),
    (lambda: nn.Dropout(float("nan")), ValueError, "Dropout: p must be a finite number"),
    (lambda: nn.Dropout(0.5, seed=0.5), TypeError, "Dropout: seed must be an int, got 0.5"),
    (lambda: nn.Dropout(0.5, seed=-1), ValueError, "Dropout: seed must be at least 0, got -1"),
    (lambda: nn.LocalResponseNorm(0), ValueError, "LocalResponseNorm: size must be at least 1"),
    (lambda: nn.LocalResponseNorm(5, k=0), ValueError, "LocalResponseNorm: k must be a finite"),
    (lambda: nn.LocalResponseNorm(5, convention="x"), ValueError, "unknown convention 'x'"),
    (lambda: nn.HingeLoss("1"), TypeError, "HingeLoss: margin must be a number, got '1'"),
    (lambda: nn.HingeLoss(0), ValueError, "HingeLoss: margin must be a finite number > 0, got 0"),
    (lambda: nn.CrossEntropyLoss("0.1"), TypeError, "label_smoothing must be a number, got '0.1'"),
    (lambda: nn.CrossEntropyLoss(2), ValueError, "label_smoothing must be a finite number"),
    (lambda: nn.AuxiliaryLoss(weight=None), TypeError, "AuxiliaryLoss: weight must be a number"),
    (lambda: models.lenet(10.0), TypeError, "out_features must be an int, got 10.0"),
    (lambda: models.lenet(in_channels="1"), TypeError, "in_channels must be an int, got '1'"),
    (lambda: data.RandomCrop("28"), TypeError, "RandomCrop: size must be an int or a pair of ints"),
]


@pytest.mark.parametrize(("build", "error", "text"), WRONG)
def test_a_wrong_argument_is_refused_in_one_line(build, error, text):
    with pytest.raises(error) as raised:
        build()
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_are_taken_and_kept_as_pythons():
    layers = [
        nn.Conv2d(I64(2), I8(4), I64(3), np.int32(2), (1, 0), groups=I64(2), bias=np.True_),
        nn.MaxPool2d(I64(2), I8(2), ceil_mode=np.False_),
        nn.BatchNorm2d(I8(4), F(1e-5), np.float32(0.5)),
        nn.Dropout(np.float32(0.5), I64(7)),
        nn.LocalResponseNorm(I64(3), F(1e-4), F(0.75), I64(1)),
        nn.AdaptiveAvgPool2d((I64(2), I8(2))),
        nn.Flatten(),
        nn.Linear(I64(16), I8(3)),
    ]
    assert str(layers[0]) == "Conv2d(2, 4, 3, stride=2, padding=(1, 0), groups=2)"
    assert type(layers[-1].in_features) is type(layers[2].num_features) is int
    x = np.random.default_rng(0).normal(size=(3, 2, 14, 12)).astype(np.float32)
    assert nn.Sequential(*layers)(x).shape == (3, 3)


def test_sizes_of_numpy_are_taken_for_images():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    assert data.to_float(images, size=I64(6)).shape == (2, 1, 6, 6)
    assert data.to_float(images, size=(I8(6), np.int32(8))).shape == (2, 1, 6, 8)
    assert data.RandomCrop(I64(2), I8(1)).size == (2, 2)
    with pytest.raises(TypeError, match="size must be an int or a pair of ints, got 6"):
        data.to_float(images, size=6.0)
