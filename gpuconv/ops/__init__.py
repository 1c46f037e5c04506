"""The operations: each one's definition, its gradient, and its implementations side by side."""

from gpuconv.ops.adaptive_avg_pool2d import adaptive_avg_pool2d, adaptive_avg_pool2d_backward
from gpuconv.ops.add import accumulate, add, assign, multiply, scale
from gpuconv.ops.avg_pool2d import avg_pool2d, avg_pool2d_backward, sum_pool2d, sum_pool2d_backward
from gpuconv.ops.batch_norm2d import batch_norm2d, batch_norm2d_backward, batch_norm2d_track
from gpuconv.ops.cast import cast, uncast
from gpuconv.ops.conv2d import conv2d, conv2d_backward
from gpuconv.ops.conv2d_relu_max_pool2d import (
    conv2d_relu_max_pool2d,
    conv2d_relu_max_pool2d_backward,
)
from gpuconv.ops.dropout import dropout
from gpuconv.ops.leaky_relu import leaky_relu, leaky_relu_backward
from gpuconv.ops.linear import linear, linear_backward
from gpuconv.ops.local_response_norm import local_response_norm, local_response_norm_backward
from gpuconv.ops.losses import (
    cross_entropy,
    cross_entropy_backward,
    half_squared_error,
    half_squared_error_backward,
    hinge,
    hinge_backward,
    loss_and_gradient,
)
from gpuconv.ops.max_pool2d import max_pool2d, max_pool2d_backward
from gpuconv.ops.relu import relu, relu_backward
from gpuconv.ops.sigmoid import sigmoid, sigmoid_backward
from gpuconv.ops.softmax import softmax, softmax_backward
from gpuconv.ops.tanh import scaled_tanh, scaled_tanh_backward, tanh, tanh_backward

__all__ = [
    "accumulate",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "add",
    "assign",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm2d",
    "batch_norm2d_backward",
    "batch_norm2d_track",
    "cast",
    "conv2d",
    "conv2d_backward",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "half_squared_error",
    "half_squared_error_backward",
    "hinge",
    "hinge_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "loss_and_gradient",
    "max_pool2d",
    "max_pool2d_backward",
    "multiply",
    "relu",
    "relu_backward",
    "scale",
    "scaled_tanh",
    "scaled_tanh_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "sum_pool2d",
    "sum_pool2d_backward",
    "tanh",
    "tanh_backward",
    "uncast",
]
